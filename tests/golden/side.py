"""Writes the digests of the revision whose ``finetune`` is importable in this process; started by ``python -m tests.golden``."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.golden import command_lines, decoding, images, trained, training_runs
from tests.golden.case import Case, Place
from tests.golden.processes import awaited, forked, import_everything, warm_up

Digests = dict[str, dict[str, str]]


def all_cases() -> list[Case]:
    """Every case of every section."""
    return [*command_lines.cases(), *decoding.cases(), *training_runs.cases(), *trained.cases()]


def sections() -> list[str]:
    """Names that ``--only`` takes."""
    return list(dict.fromkeys(case.section for case in all_cases()))


def chosen(only: Sequence[str], *, quick: bool) -> list[Case]:
    """The cases of these sections (all, where none is given) and this tier; ``SECTION/NAME`` selects one case."""
    return [
        case
        for case in all_cases()
        if (f"{case.section}/{case.name}" in only) or ((not only or case.section in only) and (case.quick or not quick))
    ]


def digests_of(cases: Sequence[Case], work: Path, report: Callable[[str], None]) -> Digests:
    """Do the cases one after the other, each in a fork of this process.

    Args:
        cases: In this order.
        work: A new folder.
        report: Gets a line for each case.

    Returns:
        By ``section/name``, texts and digests by name. A case that raises is kept with what it raised.
    """
    work.mkdir(parents=True)
    (work / "nothing").mkdir()
    images.write_all(work)
    for name in dict.fromkeys(need for case in cases for need in case.needs):
        report(f"run {name}")
        trained.prepare(name, work)
    found: Digests = {}
    for number, case in enumerate(cases):
        folder = work / "cases" / f"{number}"
        folder.mkdir(parents=True)
        output = work / "cases" / f"{number}.answer"
        (status,) = awaited([forked(_job(case, Place(work, folder), output), output.with_suffix(""))])
        title = f"{case.section}/{case.name}"
        error = output.with_suffix(".err").read_text(encoding="utf-8")
        found[title] = json.loads(output.read_text()) if status == 0 else {"case failed": error}
        report(title if status == 0 else f"{title}: FAILED\n{error}")
        shutil.rmtree(folder)
    return found


def _job(case: Case, place: Place, output: Path) -> Callable[[], int]:
    def job() -> int:
        output.write_text(json.dumps(case.outcome(place)))
        return 0

    return job


def main(argv: Sequence[str]) -> int:
    """``OUT WORK SOURCE [--quick] [--only SECTION ...]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args(argv)
    import finetune

    assert finetune.__file__ is not None
    assert Path(finetune.__file__).is_relative_to(given.source), f"{finetune.__file__} is not of {given.source}"
    warm_up()
    import_everything()
    found = digests_of(
        chosen(given.only, quick=given.quick), given.work, lambda line: print(line, file=sys.stderr, flush=True)
    )
    given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
