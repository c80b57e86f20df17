"""Cut the power at every file operation of a run, and make every one of them fail; every end must be the same to the bit.

    uv run python tests/power_loss.py

Power: one run is recorded; for each prefix of its file operations, every state that a disk may be left in (tests/crash_states.py)
is made in a new folder and resumed from. Failures: the n-th operation of each kind fails with each errno that it can have; the
run must end with one message that names the file and the cause, or go on with a warning, and must be whole when it is resumed.
Ends with status 1 where one is not. A lean, fixed choice of both is in tests/training/test_power_loss.py.
"""

import argparse
import contextlib
import errno
import gc
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from finetune.file_lock import LOCK
from tests.crash_states import Contents, Disk, Tree, digest, is_scratch, materialize, tree_of
from tests.file_layer import COMPILED, Kind, Layer, compile_layer, environment, layer_of_this_process, named, read_log

PHASES = (
    "schedule=gradual",
    "schedule.phases.0.solver=gradient",
    # what one epoch sees once is not cached
    *(f"schedule.phases.{n}.epochs={epochs}" for n, epochs in enumerate((2, 2, 1))),
    "schedule.phases.2.batch_norm=train",
    "data.augment=standard",
    "checkpoint.every_n_steps=2",
    # small files: each state is written once
    "+backbone.kwargs.channels=[4,4,8,8]",
)
# each kind of operation with what the system can answer, whether all later ones fail too, and what a message calls it
FAILURES: tuple[tuple[str, Kind, int, bool], ...] = (
    ("create", Kind.OPEN_WRITE, errno.EACCES, False),
    ("create", Kind.OPEN_WRITE, errno.EROFS, True),
    ("create", Kind.OPEN_WRITE, errno.ENOSPC, False),
    ("write", Kind.WRITE, errno.ENOSPC, True),
    ("write", Kind.WRITE, errno.EIO, False),
    ("allocate", Kind.ALLOCATE, errno.ENOSPC, True),
    ("sync", Kind.SYNC, errno.EIO, False),
    ("sync", Kind.SYNC, errno.ENOSPC, False),
    ("rename", Kind.RENAME, errno.EIO, False),
    ("rename", Kind.RENAME, errno.EACCES, False),
    ("unlink", Kind.UNLINK, errno.EIO, False),
    ("mkdir", Kind.MKDIR, errno.ENOSPC, False),
    ("mkdir", Kind.MKDIR, errno.EROFS, True),
    ("mmap", Kind.MMAP, errno.ENOMEM, False),
    ("open", Kind.OPEN_READ, errno.EIO, False),
    ("read", Kind.READ, errno.EIO, True),
    ("memory", Kind.MEMORY, errno.ENOMEM, False),
)
# any of these words names the cause
CAUSES = {
    errno.ENOSPC: "disk is full",
    errno.EIO: "input/output error",
    errno.EACCES: "permission denied",
    errno.EROFS: "read-only",
    errno.ENOMEM: "memory",
}
# a tensor of this size is an allocation that counts; smaller ones are too many
LEAST_BYTES = 60_000


@dataclass
class Verdict:
    """How one state or one failure ended.

    Args:
        case: What was cut or what failed.
        how: ``resumed``, ``started again``, ``finished`` or ``went on``.
        wrong: What was not as it must be; empty where all was well.
    """

    case: str
    how: str
    wrong: str = ""


class Uninterrupted:
    """The run that nothing happens to, and what it leaves.

    Args:
        folder: For its files and those of all others.
        layer: Records it.
        more: Overrides.
    """

    def __init__(self, folder: Path, layer: Layer, *, more: Iterable[str] = ()) -> None:
        from tests.conftest import TINY_RESNET10T, make_pets
        from tests.runs import outcome, train_tiny

        self.folder, self.layer = folder, layer
        pets = make_pets(folder / "pets", count=8)
        # facts of files that are younger than two seconds are not kept, and then no two runs would write the same
        for path in pets.rglob("*"):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        self.words = ["data=folder", f"data.root={pets}", *TINY_RESNET10T, *PHASES, *more]
        self.root = folder / "whole"
        self.root.mkdir()

        def job() -> int:
            layer.record(self.root, folder / "log")
            with marking(layer, self.root):
                train_tiny(self.words, self.root / "run")
            layer.mark("finished")
            layer.stop()
            (folder / "modules").write_text("\n".join(sys.modules))
            return 0

        status, said = in_child(job, self.root / "cache", folder / "whole.out")
        assert status == 0, said
        # imported once here, not in each of the runs that are forked
        for module in (folder / "modules").read_text().split():
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        # the program stays what it was at the start, though its files change while this runs
        importlib.import_module("finetune.runners.resume")
        # the forked processes share what is there by now
        gc.collect()
        gc.freeze()
        self.operations = read_log(folder / "log", self.root)
        assert any(one.path.startswith("cache/features/") for one in self.operations), "the run has used no cache"
        self.outcome = outcome(self.root / "run")
        self.tree = tree_of(self.root)

    def differs(self, root: Path) -> str:
        """In what a run that was cut off and gone on with differs from this one; empty where it does not."""
        from tests.runs import outcome

        now = outcome(root / "run")
        wrong = [key for key in self.outcome if now[key] != self.outcome[key]]
        tree = tree_of(root)
        wrong += [f"{path} is left over" for path in tree if is_scratch(path) and path.startswith("run/")]
        wrong += [f"{path} is missing" for path in self.tree if path.startswith("run/") and path not in tree]
        for path, contents in self.tree.items():
            cached = path.startswith("cache/features/") and path.endswith(("data.bin", "chunks.bin"))
            if (cached or path == "run/split.csv") and tree.get(path, contents) != contents:
                wrong.append(f"{path} differs")
        return "; ".join(wrong)


@contextmanager
def marking(layer: Layer, root: Path) -> Iterator[None]:
    """Mark what is written atomically at the moment from which its writer relies on it."""
    import finetune.atomic_files

    real = finetune.atomic_files.atomic_path

    @contextmanager
    def marked(target: Any, **more: Any) -> Iterator[Path]:
        with real(target, **more) as part:
            yield part
        layer.mark(f"written {Path(target).relative_to(root)}")

    holders = [module for module in list(sys.modules.values()) if vars(module).get("atomic_path") is real]
    for module in holders:
        vars(module)["atomic_path"] = marked
    try:
        yield
    finally:
        for module in holders:
            vars(module)["atomic_path"] = real


def in_child(job: Callable[[], int], cache: Path, output: Path) -> tuple[int, str]:
    """Run a job in a child; returns its exit status (99 for an exception) and what it printed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            import torch

            torch.set_num_threads(1)
            os.environ["FINETUNE_CACHE"] = str(cache)
            with output.open("a", buffering=1) as file:
                sys.stdout = sys.stderr = file
                try:
                    status = job()
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, output.read_text(errors="replace") if output.exists() else ""


def go_on(whole: Uninterrupted, root: Path, output: Path) -> Verdict:
    """What a user does after a crash: resume, or start again where nothing was kept; judged by what comes out."""
    from finetune.runners.resume import resume
    from tests.runs import train_tiny

    run_dir = root / "run"
    begun = (run_dir / "run.json").is_file()
    how = ("finished" if (run_dir / "results.json").is_file() else "resumed") if begun else "started again"

    def job() -> int:
        if begun:
            resume(run_dir)
        else:
            shutil.rmtree(run_dir, ignore_errors=True)
            train_tiny(whole.words, run_dir)
        return 0

    status, said = in_child(job, root / "cache", output)
    if status != 0:
        return Verdict("", how, f"status {status}: {said.strip()[-600:]}")
    try:
        return Verdict("", how, whole.differs(root))
    except Exception as error:
        return Verdict("", how, f"{type(error).__name__}: {error}")


def power(
    whole: Uninterrupted, *, jobs: int, lean: int | None, part: tuple[int, int] = (0, 1)
) -> tuple[dict[str, Any], list[Verdict]]:
    """Every state that a power cut may leave; a lean choice takes so many of them, spread over the kinds of operations."""
    disk, seen, count = Disk(), set(), 0
    lost: list[Verdict] = []
    cases: list[tuple[int, str]] = []
    for number, operation in enumerate(whole.operations):
        disk.apply(operation)
        if operation.kind == "mark":
            lost += _not_durable(disk, operation.data.decode(), number)
            continue
        if operation.kind == "open":
            continue
        for called, tree in disk.states():
            count += 1
            if (key := digest(tree)) not in seen:
                seen.add(key)
                cases.append((number, called))
    final = {path: None if one is None else one.data for path, one in disk.tree(disk.names).items()}
    assert final == whole.tree, f"the record lacks {sorted(p for p in final if final[p] != whole.tree.get(p, 0))}"
    if lean is not None:
        cases = _lean(whole, cases, lean)
    cases = cases[part[0] :: part[1]]

    def judge(case: tuple[int, str, Tree]) -> Verdict:
        number, called, tree = case
        operation = whole.operations[number]
        root = whole.folder / f"cut-{number}-{called.replace(' ', '_').replace(',', '')}"
        materialize(tree, root)
        verdict = go_on(whole, root, root.with_suffix(".out"))
        shutil.rmtree(root)
        root.with_suffix(".out").unlink(missing_ok=True)
        verdict.case = f"after operation {number} ({operation.kind} {operation.path2 or operation.path}), {called}"
        return verdict

    verdicts = in_parallel(judge, _trees(whole, cases), whole.folder, jobs=jobs, of=len(cases))
    counts = {
        "operations": sum(one.kind not in ("mark", "open") for one in whole.operations),
        "by kind": dict(Counter(one.kind for one in whole.operations if one.kind not in ("mark", "open"))),
        "states": count,
        "distinct": len(seen),
        "tried": len(verdicts),
        "ended": dict(Counter(one.how for one in verdicts)),
        "identical": sum(not one.wrong for one in verdicts),
        "writes that were not durable when they returned": len(lost),
    }
    return counts, [*lost, *verdicts]


def _trees(whole: Uninterrupted, cases: list[tuple[int, str]]) -> Iterator[tuple[int, str, Tree]]:
    """The states once more, one after another: all of them at once would fill the memory."""
    wanted: dict[int, set[str]] = {}
    for number, called in cases:
        wanted.setdefault(number, set()).add(called)
    disk = Disk()
    for number, operation in enumerate(whole.operations):
        disk.apply(operation)
        if number in wanted:
            yield from ((number, called, tree) for called, tree in disk.states() if called in wanted[number])


def _not_durable(disk: Disk, mark: str, number: int) -> list[Verdict]:
    """What was reported as written, or as finished, and a power cut at this moment could still take away."""
    now, safe = disk.tree(disk.names), disk.tree(disk.synced_names, "synced")
    if mark == "finished":
        # nothing is in the lock's file
        paths = [path for path in now if path.startswith("run/") and path != "run/.lock"]
    else:
        path = mark.removeprefix("written ")
        # a cache is computed again where it is lost
        paths = [] if path.startswith("cache/") else [path]
    return [
        Verdict(f"after operation {number} ({mark})", "not durable", f"a power cut loses or undoes {path}")
        for path in paths
        if path not in safe or _bytes(safe[path]) != _bytes(now[path])
    ]


def _bytes(contents: Contents | None) -> bytes | None:
    return None if contents is None else contents.data


def _lean(whole: Uninterrupted, cases: list[tuple[int, str]], wanted: int) -> list[tuple[int, str]]:
    """A fixed choice that has each pair of a kind of operation and a kind of file, in as many kinds of states as possible."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for case in cases:
        operation = whole.operations[case[0]]
        groups.setdefault((operation.kind, _kind_of(operation.path2 or operation.path)), []).append(case)
    draw = random.Random(0)
    order = list(groups.values())
    # a choice smaller than the number of pairs is spread over the run too
    draw.shuffle(order)
    for group in order:
        draw.shuffle(group)
    chosen: list[tuple[int, str]] = []
    while len(chosen) < min(wanted, len(cases)):
        for group in order:
            if group and len(chosen) < wanted:
                chosen.append(group.pop())
    return chosen


def _kind_of(path: str) -> str:
    """Files of which one stands for the others."""
    name = Path(path).name
    if name.startswith(".tmp"):
        return "safetensors' own"
    if name.endswith(".part"):
        return "part of " + _target_of(name)
    return name if path.startswith("run/") else f"cache {name[-5:]}"


def _target_of(part: str) -> str:
    """Name of the file that a part is to become: `.last.ckpt.HOST-123.part` is one of `last.ckpt`."""
    return ".".join(part.strip(".").split(".")[:2])


def failures(
    whole: Uninterrupted, *, jobs: int, lean: int | None, part: tuple[int, int] = (0, 1)
) -> tuple[dict[str, Any], list[Verdict]]:
    """The n-th operation of each kind fails, for every n."""
    numbers: dict[tuple[str, str], int] = {}
    cases: list[tuple[str, Kind, int, bool, int]] = []
    root, total = whole.folder / "count", whole.folder / "counted"
    root.mkdir()

    def count() -> int:
        whole.layer.fail(root, Kind.WRITE, number=-1, error=0, least_bytes=LEAST_BYTES)
        status = _command(whole, root)
        counted = {kind.name: whole.layer.counted(kind) for kind in Kind}
        whole.layer.stop()
        total.write_text(json.dumps(counted))
        return status

    status, said = in_child(count, root / "cache", root.with_suffix(".out"))
    assert status == 0, said
    counted = json.loads(total.read_text())
    for name, kind, error, for_good in FAILURES:
        if counted[kind.name]:
            numbers[name, named(error)] = counted[kind.name]
            cases += [(name, kind, error, for_good, number) for number in range(counted[kind.name])]
    if lean is not None:
        # as many of each kind of failure, spread over the run
        each = max(lean // len(numbers), 1)
        cases = [
            case
            for (name, error), count in numbers.items()
            for case in cases
            if (case[0], named(case[2])) == (name, error)
            and case[4] in {round((spread + 0.5) * count / each) for spread in range(each)}
        ]
    cases = cases[part[0] :: part[1]]

    def judge(case: tuple[str, Kind, int, bool, int]) -> Verdict:
        name, kind, error, for_good, number = case
        root = whole.folder / f"fail-{name}-{named(error)}-{number}"
        root.mkdir()

        def job() -> int:
            whole.layer.fail(root, kind, number=number, error=error, for_good=for_good, least_bytes=LEAST_BYTES)
            status = _command(whole, root)
            path = whole.layer.failed()
            whole.layer.stop()
            root.with_suffix(".failed").write_text(path)
            return status

        status, said = in_child(job, root / "cache", root.with_suffix(".out"))
        path = root.with_suffix(".failed").read_text() if root.with_suffix(".failed").is_file() else "?"
        wrong = _answer_is_wrong(status, said, path, error, root, reads=kind in (Kind.OPEN_READ, Kind.READ))
        verdict = Verdict("", "went on")
        if status != 0 or not (root / "run/results.json").is_file():
            verdict = go_on(whole, root, root.with_suffix(".again"))
        else:
            with contextlib.suppress(Exception):
                verdict.wrong = whole.differs(root)
        short = path.removeprefix(f"{root}/")
        verdict.case = f"{name} {number} of {numbers[name, named(error)]} fails with {named(error)} ({short})"
        verdict.wrong = "; ".join(part for part in (wrong, verdict.wrong) if part)
        shutil.rmtree(root)
        return verdict

    verdicts = in_parallel(judge, cases, whole.folder, jobs=jobs, of=len(cases))
    counts = {
        "operations": {f"{name} {error}": count for (name, error), count in numbers.items()},
        "tried": len(verdicts),
        "ended": dict(Counter(one.how for one in verdicts)),
        "identical": sum(not one.wrong for one in verdicts),
    }
    return counts, verdicts


def _command(whole: Uninterrupted, root: Path) -> int:
    from finetune.cli import main as command_line

    return command_line(["train", *whole.words, f"run_dir={root / 'run'}"])


def _answer_is_wrong(status: int, said: str, path: str, error: int, root: Path, *, reads: bool) -> str:
    """What is wrong with the answer to a failure."""
    wrong = []
    if "Traceback" in said or "--traceback" in said:
        wrong.append("a bare Python error")
    # a run folder that cannot be made or written in is the user's mistake
    refused = "run_dir=" in said and ("cannot be made" in said or f"{LOCK} cannot be written in it" in said)
    if status not in (0, 1) and not (status == 2 and refused):
        wrong.append(f"status {status}")
    answers = said.splitlines()
    if status == 0:
        answers = [line for line in answers if "warning" in line or "could not" in line or "without" in line]
        # what is read to be reported again, or removed, may fail without a word
    text = "\n".join(answers).lower()
    name = Path(path).name
    target = _target_of(name) if name.endswith(".part") else name
    shown = [target]
    if name.startswith(".tmp") or "/cache/features/" in path:
        # safetensors' own file, and a mapping, of which the system gives no name: the folder stands for them
        shown.append(str(Path(path).parent))
    # a lock that cannot say whose it is still locks: where all later operations fail too, the message names their file
    # what a run was trusted with is looked up to show the command that resumes it, which is shown without it where it is not read
    needed = path and path != "memory" and not (status != 2 and name == LOCK) and not (reads and name == "run.json")
    if needed and not any(word.lower() in text for word in shown):
        wrong.append("the file is not named")
    if (needed or path == "memory" or status != 0) and CAUSES[error] not in text:
        wrong.append("the cause is not named")
    if wrong:
        wrong.append(f"it said: {' / '.join(said.strip().splitlines()[-3:])[-500:]}")
    if status != 0 and (root / "run").is_dir():
        wrong += [f"{path.name} is left over" for path in (root / "run").rglob("*") if is_scratch(path.name)]
    return ", ".join(wrong)


def in_parallel(
    judge: Callable[[Any], Verdict], cases: Iterable[Any], folder: Path, *, jobs: int, of: int
) -> list[Verdict]:
    """Judge each case in a process of its own, so many at once; the verdicts in order."""
    running: dict[int, int] = {}
    verdicts: dict[int, Verdict] = {}

    def take() -> None:
        child, status = os.wait()
        number = running.pop(child)
        file = folder / f"verdict-{number}"
        if file.is_file():
            verdicts[number] = Verdict(**json.loads(file.read_text()))
            file.unlink()
        else:
            verdicts[number] = Verdict(f"case {number}", "no verdict", f"its process ended with {status}")
        if number in verdicts and verdicts[number].wrong:
            print(f"  WRONG {asdict(verdicts[number])}", flush=True)
        if (done := len(verdicts)) % 50 == 0:
            bad = sum(bool(one.wrong) for one in verdicts.values())
            print(f"  {done} of {of}, {bad} wrong", flush=True)

    for number, case in enumerate(cases):
        if len(running) == jobs:
            take()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                (folder / f"verdict-{number}").write_text(json.dumps(asdict(judge(case))))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        running[child] = number
    while running:
        take()
    return [verdicts[number] for number in sorted(verdicts)]


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["power", "failures"], help="one of the two")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--lean", type=int, help="so many states and so many failures, always the same")
    parser.add_argument("--part", default="0/1", metavar="K/N", help="every N-th case from the K-th on, K from 0")
    parser.add_argument(
        "--python-layer", action="store_true", help="without the compiled layer, as where there is no cc"
    )
    given = parser.parse_args()
    first, parts = map(int, given.part.split("/"))
    with tempfile.TemporaryDirectory(prefix="power-loss-") as name:
        folder = Path(name).resolve()
        if COMPILED not in os.environ and not given.python_layer:
            library = compile_layer(folder)
            if library is not None:
                return subprocess.run([sys.executable, *sys.argv], env=environment(library), check=False).returncode
        layer = layer_of_this_process()
        print(f"file operations are watched at {layer.name}", flush=True)
        failed = 0
        for what, campaign in (("power", power), ("failures", failures)):
            if given.only in (None, what):
                (folder / what).mkdir()
                whole = Uninterrupted(folder / what, layer)
                counts, verdicts = campaign(whole, jobs=given.jobs, lean=given.lean, part=(first, parts))
                print(f"{what}: {json.dumps(counts)}")
                for verdict in verdicts:
                    if verdict.wrong:
                        failed += 1
                        print(f"  WRONG ({verdict.how}): {verdict.case}: {verdict.wrong}")
        print(f"{failed} wrong", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    # libraries that were imported here and never used complain when the interpreter takes them apart
    os._exit(ended)
