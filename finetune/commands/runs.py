"""``finetune runs``: list runs, compare them side by side, and delete files that are no longer needed."""

import contextlib
import csv
import io
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.commands.options import Arguments, home_path
from finetune.config import command_line, flat
from finetune.config.plain_yaml import read_plain_yaml
from finetune.counted import counted
from finetune.errors import UserError, did_you_mean
from finetune.plain import from_plain
from finetune.results import Results
from finetune.resume_command import resume_command
from finetune.run_names import RECORD
from finetune.safe_files import LARGEST_JSON, inside, leads_out, read_json, read_text
from finetune.wilson import wilson
from finetune.wrapping import aligned, wrapped

ABOUT = """\
list [DIR...]       the runs below DIR (default: runs): state, test accuracy with its 95 % interval, time, size on disk
compare RUN RUN...  side by side: settings that differ, curves of validation, metrics of validation and test
clean [DIR...]      delete checkpoints and weights inside finished runs that nothing reads any more; without --yes they are only
                    counted. Models, reports and results stay, and unfinished runs are not touched

Intervals hold 95 %: Wilson's of the accuracy, from the number of test images, and bootstrap intervals of the other metrics."""

_EMPTY: Mapping[str | None, None] = dict.fromkeys(("null", "[]", "{}"))
_ACTIONS = ("list", "compare", "clean")
# letters for the names of runs that are compared; longer ones stand above the tables
_NAME = 50
_BARS = "▁▂▃▄▅▆▇█"
# levels below a folder at which runs are searched: a sweep or a ladder has a folder for its runs
_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The summary of a run that the table shows.

    Args:
        path: Run folder.
        state: ``finished``, ``failed``, or ``not finished``.
        settings: Configuration by dotted keys, as text.
        results: Contents of ``results.json``; None for a run that has not finished.
        epochs: Rows of ``metrics.csv``.
        size_bytes: Size on disk.
    """

    path: Path
    state: str
    settings: Mapping[str, str]
    results: Results | None
    epochs: Sequence[Mapping[str, str]]
    size_bytes: int

    def metric(self, split: str, name: str) -> float | None:
        """Return a metric of a split, if the run has it."""
        if self.results is None:
            return None
        return (self.results.test if split == "test" else self.results.val).scalars().get(name)

    @property
    def test_images(self) -> int:
        """Number of test images; 0 where it is not known."""
        if self.results is None:
            return 0
        if self.results.test.map is None:
            return sum(self.results.data.counts.get("test", ()))
        # the counts are of labels, of which an image has several
        from finetune.report.confusion import images_counted

        return images_counted(self.results.test, len(self.results.data.classes))

    def accuracy(self) -> str:
        """Return the test accuracy with its interval."""
        share, images = self.metric("test", "acc"), self.test_images
        if share is None or not images:
            return "-"
        low, high = wilson(share, images)
        return f"{share:.4f} ({low:.3f}-{high:.3f})"

    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """Return the intervals of the other test metrics; none of a run that has not finished."""
        if self.results is None:
            return {}
        from finetune.report.metric_intervals import metric_intervals

        return metric_intervals(self.path, self.results)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    if interval is None:
        return f"{value:.4f}"
    # a loss may be small
    digits = 3 if interval[1] >= 0.1 else 4
    return f"{value:.4f} ({interval[0]:.{digits}f}-{interval[1]:.{digits}f})"


def curve(values: Sequence[float]) -> str:
    """Return numbers as a line of bars whose heights run from the smallest to the largest.

    >>> curve([0.0, 0.5, 1.0])
    '▁▅█'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    step = (high - low) or 1.0
    heights = [(value - low) / step * (len(_BARS) - 1) if math.isfinite(value) else None for value in values]
    return "".join("?" if height is None else _BARS[int(height + 0.5)] for height in heights)


def run(argv: Sequence[str]) -> int:
    """Run ``finetune runs`` and return the exit status."""
    parser = Arguments("runs", ABOUT, ending="")
    parser.add_argument("words", metavar="list | compare | clean, and folders", nargs="*", help="default: list runs")
    parser.add_argument("--yes", action="store_true", help="with clean: really delete the files")
    given = parser.read(argv)
    action, *places = given.words or ["list"]
    if action not in _ACTIONS:
        if not home_path(action).is_dir():
            raise parser.wrong(f"takes {', '.join(_ACTIONS)}. Given: {action}.{did_you_mean(action, _ACTIONS)}")
        action, places = "list", given.words
    if given.yes and action != "clean":
        raise UserError("--yes: belongs to finetune runs clean.")
    folders = [home_path(place) for place in places]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder.")
    if action == "compare":
        if len(folders) < 2:
            raise parser.wrong("compare needs two runs or more: finetune runs compare RUN RUN")
        print("\n".join(comparison([summary_of(folder) for folder in folders])))
        return 0
    if not folders and (not Path("runs").is_dir() or not runs_below(Path("runs"))):
        # run_dir=NAME puts a run into the current folder
        line = command_line("runs", [*([action] if action != "list" else []), *(["--yes"] if given.yes else []), "."])
        if any(Path().glob(f"*/{RECORD}")):
            raise UserError(f"runs: no runs there. The current folder has some: {line}")
        if not Path("runs").is_dir():
            raise UserError(f"runs: no such folder. Name the folder of your runs: {line.removesuffix('.')}DIR")
    below = {folder: runs_below(folder) for folder in folders or [Path("runs")]}
    found = [path for paths in below.values() for path in paths]
    if action == "clean":
        line = " ".join(["finetune runs clean", *map(shlex.quote, places), "--yes"])
        # whoever made the folder may have put a link into it to any run; its own name cleans that
        linked = {path: real for folder, paths in below.items() for path in paths if (real := leads_out(path, folder))}
        print("\n".join(_clean([path for path in found if path not in linked], delete=given.yes, line=line)))
        for path, real in linked.items():
            print(f"{path}: left as it is, a link to another place: finetune runs clean {shlex.quote(str(real))} --yes")
        return 0
    runs, problems = [], []
    for path in found:
        try:
            runs.append(summary_of(path))
        except UserError as error:
            problems.append(str(error))
    print("\n".join(run_table(runs)))
    if problems:
        raise UserError("\n".join([f"{len(problems)} of {len(found)} runs cannot be read.", *problems]))
    return 0


def runs_below(folder: Path) -> list[Path]:
    """Return the run folders at or below a folder, by name."""
    patterns = ["/".join(["*"] * depth + [RECORD]) for depth in range(_DEPTH + 1)]
    return sorted({path.parent for pattern in patterns for path in folder.glob(pattern)})


def summary_of(path: Path) -> RunSummary:
    """Read the summary of a run.

    Raises:
        UserError: The folder is not a run, or one of its files cannot be read.
    """
    from finetune.run_folder import RunFolder

    folder = RunFolder(path)
    if not folder.record.is_file():
        raise UserError(f"RUN='{path}': not a run folder. It has no run.json.")
    epochs: list[Mapping[str, str]] = []
    if folder.metrics.is_file():
        text = read_text(inside(path, folder.metrics.name), largest=LARGEST_JSON)
        epochs = [
            row for row in csv.DictReader(io.StringIO(text, newline="")) if None not in row and None not in row.values()
        ]
    finished = os.path.lexists(folder.results)
    state = "finished" if finished else "failed" if folder.error_log.is_file() else "not finished"
    settings = flat(read_plain_yaml(inside(path, folder.config.name)))
    if missing := [key for key in ("backbone.name", "schedule.name") if key not in settings]:
        raise UserError(f"{folder.config}: is damaged. It lacks {' and '.join(missing)}.")
    return RunSummary(
        path=path,
        state=state,
        settings=settings,
        results=_results(path) if finished else None,
        epochs=epochs,
        size_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()),
    )


def _results(path: Path) -> Results:
    file = inside(path, "results.json")
    results = from_plain(Results, read_json(file, dict), name=str(file), remedy="finetune resume RUN makes it again.")
    if not 0 <= results.test.acc <= 1:
        raise UserError(f"{file}: test.acc must be a share, from 0 to 1. It is {results.test.acc}.")
    return results


def _numbers(rows: Sequence[Mapping[str, str]], column: str) -> list[float]:
    """Return a column of ``metrics.csv``, without cells that are empty or not numbers."""
    numbers = []
    for row in rows:
        with contextlib.suppress(KeyError, ValueError):
            numbers.append(float(row[column]))
    return numbers


def run_table(runs: Sequence[RunSummary]) -> list[str]:
    """Return a table with a row for each run, the newest last."""
    if not runs:
        return ["no runs"]
    rows = [["state", "network", "schedule", "test acc (95 %)", "val acc", "time", "MB"]]
    for one in runs:
        validation = one.metric("val", "acc")
        seconds = None if one.results is None else one.results.seconds.training
        rows.append(
            [
                one.state,
                one.settings["backbone.name"],
                one.settings["schedule.name"],
                one.accuracy(),
                "-" if validation is None else f"{validation:.4f}",
                "-" if seconds is None else f"{seconds:.0f} s",
                f"{one.size_bytes / 1e6:.1f}",
            ]
        )
    unfinished = [one.path for one in runs if one.state != "finished"]
    # a folder has a line of its own, so that it can be copied
    columns, *cells = aligned(rows, left=5, indent=2)
    lines = ["run", columns]
    for one, line in zip(runs, cells, strict=True):
        lines += [str(one.path), line]
    lines += ["", f"{counted(len(runs), 'run')}, {sum(one.size_bytes for one in runs) / 1e6:.1f} MB"]
    lines += [f"continue with: {resume_command(path)}" for path in unfinished]
    finished = [one for one in runs if one.state == "finished"]
    if len(finished) > 1:
        pair = " ".join(shlex.quote(str(one.path)) for one in finished[-2:])
        lines.append(f"side by side: finetune runs compare {pair}")
    return lines


def comparison(runs: Sequence[RunSummary]) -> list[str]:
    """Return runs side by side: what differs in their settings, their curves, their metrics."""
    names = [one.path.name for one in runs]
    legend: list[str] = []
    if len(set(names)) < len(names) or max(map(len, names)) > _NAME // len(names):
        names = [f"run {number}" for number in range(1, len(runs) + 1)]
        legend = [*(f"{name}: {one.path}" for name, one in zip(names, runs, strict=True)), ""]
    keys = [
        key
        for key in dict.fromkeys(key for one in runs for key in one.settings)
        # of a phase that another run lacks, the settings without a value are not differences
        if key != "run_dir" and len({_EMPTY.get(text := one.settings.get(key), text) for one in runs}) > 1
    ]
    rows = [["settings that differ", *names]]
    rows += [[key, *(one.settings.get(key, "-") for one in runs)] for key in keys]
    left = len(names) + 1
    lines = [*legend, *(aligned(rows, left=left) if keys else ["the settings are the same"])]
    metrics = [["metrics (95 %)", *names], ["test acc", *(one.accuracy() for one in runs)]]
    intervals = [one.intervals() for one in runs]
    for split in ("test", "val"):
        for name in ("acc", "f1_macro", "map", "loss", "ece"):
            values = [one.metric(split, name) for one in runs]
            if any(value is not None for value in values) and (split, name) != ("test", "acc"):
                known = intervals if split == "test" else [{}] * len(runs)
                cells = [_with_interval(value, found.get(name)) for value, found in zip(values, known, strict=True)]
                metrics.append([f"{split} {name}", *cells])
    metrics.append(["test images", *(str(one.test_images) if one.results else one.state for one in runs)])
    lines += ["", *aligned(metrics, left=left)]
    curves = [["curves", *names]]
    for column in dict.fromkeys(["val/loss", *(one.settings.get("monitor", "val/acc") for one in runs)]):
        series = [_numbers(one.epochs, column) for one in runs]
        if any(series):
            curves.append([column, *map(curve, series)])
            curves.append(["  first, last", *(f"{one[0]:.4f}, {one[-1]:.4f}" if one else "-" for one in series)])
    lines += ["", *aligned(curves, left=left)] if len(curves) > 1 else []
    prints = {one.results.data.fingerprint for one in runs if one.results}
    if len(prints) > 1:
        lines += ["", wrapped("The runs were tested on different data or splits: their metrics cannot be compared.")]
    return lines


def _clean(paths: Sequence[Path], *, delete: bool, line: str) -> list[str]:
    """Delete what finished runs no longer need, or only count it and name the command line that deletes it.

    Raises:
        UserError: A run may not be cleaned; nothing has been deleted.
    """
    from finetune.run_folder import RunFolder

    lines, total = [], 0
    for path, spare in [(path, RunFolder(path).spare_files()) for path in paths]:
        size = sum(file.stat().st_size for file in spare)
        if not spare:
            continue
        total += size
        lines.append(f"{size / 1e6:>10.1f} MB  {path}")
        if delete:
            RunFolder(path).delete_spare_files()
    what = "deleted" if delete else f"can be deleted: {line}"
    return [*lines, f"{total / 1e6:.1f} MB in {len(lines)} finished runs {what}" if lines else "nothing to delete"]
