"""Digests of what the program does, to see that a rebuilding leaves it as it is.

    python -m tests.golden write OUT [--revision REV]
    python -m tests.golden compare REV | BEFORE.json [--to REV]

``compare`` makes the digests of both revisions in turn on this machine (floating point differs between processors) with this
checkout's cases, prints each difference, and ends with status 1 where there is one. Without ``--to`` the other side is this
checkout as it stands. ``--quick`` takes the quick tier (about two minutes a side on an idle core, the full one about ten),
``--only help mistakes schedules/NAME`` takes sections or single cases.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.golden.compare import differences
from tests.golden.side import Digests, sections

HERE = Path(__file__).resolve().parents[2]


def sources(revision: str | None, folder: Path) -> Path:
    """Copy ``finetune`` and ``conf`` of a revision, or of this checkout as it stands now, and return the folder."""
    folder.mkdir()
    if revision is None:
        for name in ("finetune", "conf"):
            shutil.copytree(HERE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        return folder
    archive = subprocess.run(
        ["git", "-C", str(HERE), "archive", revision, "--", "finetune", "conf"], capture_output=True, check=False
    )
    if archive.returncode:
        raise SystemExit(f"{revision}: cannot be read by git. {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def digests(copy: Path, scratch: Path, *, quick: bool, only: Sequence[str]) -> Digests:
    """Make the digests of a copy of the program in a process of its own, where its ``finetune`` is the one imported."""
    # both sides work in folders of the same names, so that nothing depends on them
    source = copy.rename(scratch / "source")
    out, work = scratch / "digests.json", scratch / "work"
    environment = {
        **os.environ,
        # tests/ comes from this checkout, whatever the revision has
        "PYTHONPATH": os.pathsep.join(dict.fromkeys((str(source), str(HERE)))),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
    }
    words = [sys.executable, "-m", "tests.golden.side", str(out), str(work), str(source), "--only", *only]
    subprocess.run([*words, *(["--quick"] if quick else [])], cwd=scratch, env=environment, check=True)
    found: Digests = json.loads(out.read_text(encoding="utf-8"))
    shutil.rmtree(work)
    shutil.rmtree(source)
    out.unlink()
    return found


def main(argv: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write the digests of a revision as JSON")
    write.add_argument("out", type=Path)
    write.add_argument("--revision", help="default: this checkout as it stands")
    compare = commands.add_parser("compare", help="compare two revisions")
    compare.add_argument("before", help="a revision, or a file of write")
    compare.add_argument("--to", help="default: this checkout as it stands")
    for command in (write, compare):
        command.add_argument("--quick", action="store_true", help="the quick tier")
        command.add_argument("--only", nargs="+", default=[], help=f"of {', '.join(sections())}, or SECTION/NAME")
    given = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        scratch = Path(folder)
        if given.command == "write":
            found = digests(sources(given.revision, scratch / "only"), scratch, quick=given.quick, only=given.only)
            given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
            print(f"{len(found)} cases in {time.monotonic() - began:.0f} s: {given.out}")
            return 0
        # whatever is committed or rebased in the meantime
        other = sources(given.to, scratch / "after")
        if given.before.endswith(".json"):
            before: Digests = json.loads(Path(given.before).read_text(encoding="utf-8"))
        else:
            before = digests(sources(given.before, scratch / "before"), scratch, quick=given.quick, only=given.only)
        after = digests(other, scratch, quick=given.quick, only=given.only)
    if given.before.endswith(".json"):
        # a file may hold more than what was asked for
        before = {name: kept for name, kept in before.items() if name in after}
    lines = differences(before, after)
    print("\n".join(lines))
    differing = sum(before.get(name) != after.get(name) for name in before | after)
    print(f"{len(before | after)} cases, {differing} differ, {time.monotonic() - began:.0f} s")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
