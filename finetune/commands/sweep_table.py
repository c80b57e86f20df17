"""Jobs of a sweep: each job writes a record, and one table shows all of them, including failed ones."""

import csv
import io
import math
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.atomic_files import write_json, write_text
from finetune.checksums import verify
from finetune.config import to_config
from finetune.config.schema import Config
from finetune.distributed import environment_restored, is_rank_zero
from finetune.errors import RunError, UserError
from finetune.file_errors import in_words
from finetune.run_folder import RunFolder
from finetune.safe_files import read_json
from finetune.terminal import GuardedStream

JOBS, TABLE = "jobs", "sweep.csv"
_MEASURED = ("val", "test", "seconds")


class Refused(BaseException):
    """A sweep that must not start; not an ``Exception``, because Hydra turns exceptions in callbacks into warnings."""


class Watch:
    """Hydra callback that learns the folder of a sweep before its first job (named in ``conf/train.yaml``)."""

    # folder and command of the sweep that this process has started
    folder: Path | None = None
    command: str = ""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Remember the folder, and refuse settings that would fail or mislead in every job."""
        folder = Path(str(config.hydra.sweep.dir)).absolute()
        if config.get("run_dir"):
            raise Refused(
                f"run_dir={config.run_dir}: the runs of a sweep cannot share a folder. hydra.sweep.dir=DIR chooses the "
                "folder that holds all of them."
            )
        direction = config.hydra.sweeper.get("direction")
        if direction is not None and not isinstance(direction, Sequence):
            direction = direction.name
        expected = "minimize" if smaller_is_better(str(config.monitor)) else "maximize"
        if direction is not None and Watch.command != "train":
            raise Refused(
                f"finetune {Watch.command}: cannot be searched over: its jobs leave no figure on validation. "
                "finetune train can."
            )
        if direction not in (None, expected):
            raise Refused(
                f"hydra.sweeper.direction={direction}: does not fit monitor={config.monitor}, of which "
                f"{'less' if expected == 'minimize' else 'more'} is better. Write hydra.sweeper.direction={expected}."
            )
        try:
            # created at once: if two sweeps want the same folder, only one gets it
            (folder / JOBS).mkdir(parents=True)
        except FileExistsError:
            raise Refused(f"hydra.sweep.dir={folder}: holds a sweep already. Choose another folder.") from None
        except OSError as error:
            raise Refused(in_words(error, folder, "cannot be made", name=f"hydra.sweep.dir={folder}")) from error
        Watch.folder = folder
        print(f"sweep: {folder}", flush=True)

    def __getattr__(self, name: str) -> Callable[..., None]:
        # Hydra calls a method for every event of every callback
        if name.startswith("on_"):
            return lambda **_: None
        raise AttributeError(name)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The function that Hydra calls: once, or in a sweep for each combination, here or in a process that a launcher starts.

    Args:
        task: Function that runs the command on a configuration and returns an exit status.
        words: Program, command and config folders: the words that every job's command line starts with.
        starter: Id of the process that started the sweep.
        common: Overrides that every job has.
        outcome: Without a sweep, the ``status`` or ``error`` of the task.
    """

    task: Callable[[Config], int]
    words: tuple[str, ...]
    starter: int
    common: frozenset[str] = frozenset()
    outcome: dict[str, Any] = field(default_factory=dict)

    def __call__(self, composed: Any) -> float | None:
        """Run the task.

        Returns:
            In a sweep the monitored validation metric, which a sweeper may optimise; otherwise None.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        # DDP starts this program again with sys.argv, which must contain the command and, in a sweep, only this job's overrides
        sys.argv = [*self.words, *hydra.overrides.task]
        if hydra.mode == RunMode.MULTIRUN:
            return self._swept(composed, hydra)
        try:
            with environment_restored():
                self.outcome["status"] = self.task(to_config(composed))
        except Exception as error:  # Hydra would add output of its own; the caller raises it again
            self.outcome["error"] = error
        return None

    def _swept(self, composed: Any, hydra: Any) -> float | None:
        """Run one job of a sweep; never raise, so that the other jobs run and every launcher and sweeper continues."""
        number, folder = int(hydra.job.num), Path(hydra.sweep.dir).absolute() / JOBS
        composed.run_dir = hydra.runtime.output_dir
        record: dict[str, Any] = {
            "job": number,
            "overrides": list(hydra.overrides.task),
            "run_dir": composed.run_dir,
            "monitor": composed.monitor,
            "status": "running",
        }
        file = folder / f"{number}.json"
        self._write(file, record)
        overrides = " ".join(word for word in record["overrides"] if word not in self.common)
        print(f"\njob {number}: {overrides}", flush=True)
        began = time.monotonic()
        try:
            with environment_restored(), self._output(folder / f"{number}.log"):
                status = self.task(to_config(composed))
            record |= {"status": "finished" if status == 0 else "failed", **_measured(composed)}
            if status != 0:
                record["message"] = f"ended with status {status}"
        except Exception as error:
            if is_rank_zero():
                with (folder / f"{number}.log").open("a", encoding="utf-8") as log:
                    traceback.print_exception(error, file=log)
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            mistake = isinstance(error, UserError)
            if not mistake and not isinstance(error, RunError):
                first = f"{type(error).__name__}: {first}"
            record |= {"status": "failed", "message": str(error) if mistake else first, "mistake": mistake}
        except KeyboardInterrupt:
            self._write(file, record | {"status": "stopped"})
            raise
        record["seconds"] = round(time.monotonic() - began, 1)
        self._write(file, record)
        print(f"job {number}: {_in_words(record)}", flush=True)
        value = record.get("monitored")
        return value if value is not None and math.isfinite(value) else None

    def _write(self, file: Path, record: dict[str, Any]) -> None:
        if is_rank_zero():
            write_json(file, record)

    @contextmanager
    def _output(self, log: Path) -> Iterator[None]:
        """Send the output of a job in another process to its log, so that parallel jobs do not mix their output."""
        if os.getpid() == self.starter:
            yield
            return
        with log.open("a", encoding="utf-8") as file, redirect_stdout(GuardedStream(file, str(log))):
            yield


def _measured(composed: Any) -> dict[str, float]:
    """Return the metrics in a run's results; empty for commands that do not train."""
    file = RunFolder(Path(composed.run_dir)).results
    if not file.is_file():
        return {}
    verify(file)
    results = read_json(file, dict)
    metrics = {split: results[split].get("acc") for split in ("val", "test")}
    metrics["monitored"] = results["val"].get(str(composed.monitor).removeprefix("val/"))
    return {key: value for key, value in metrics.items() if value is not None}


def _in_words(record: dict[str, Any]) -> str:
    figures = "".join(f"  {key} {record[key]:.4f}" for key in ("val", "test") if key in record)
    why = f": {record['message'].splitlines()[0]}" if "message" in record else ""
    return f"{record['status']}{why}{figures}  {record['seconds']:.0f} s"


def conclude(folder: Path, *, ended: bool) -> None:
    """Write and print the table of a sweep.

    Args:
        folder: Folder of the sweep.
        ended: Whether all jobs are done; if not, jobs that started and did not end count as stopped.

    Raises:
        UserError: Jobs failed, all of them by user errors.
        RunError: Jobs failed.
    """
    records = [read_json(file, dict) for file in (folder / JOBS).glob("*.json")]
    records.sort(key=lambda record: int(record["job"]))
    for record in records:
        if record["status"] == "running":
            record |= {
                "status": "failed" if ended else "stopped",
                "message": "its process exited before it reported a result",
            }
    names, rows = table(records)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    write_text(folder / TABLE, text.getvalue())
    shown = [names[:-1], *(row[:-1] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    print()
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\n".join(["", *filter(None, [best(records)]), f"sweep: {folder / TABLE}"]), flush=True)
    for record in records:
        if record["status"] == "stopped" and (Path(record["run_dir"]) / "run.json").is_file():
            print(f"job {record['job']} was stopped; go on with: finetune resume {shlex.quote(record['run_dir'])}")
    failed = [record for record in records if record["status"] == "failed"]
    if failed or not records:
        problem = _failure(failed, len(records), folder)
        if ended:
            raise problem
        print(problem, flush=True)


def table(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return column names and one row per job: the overrides in which jobs differ, the metrics, and the run folder.

    >>> names, rows = table([{"job": 0, "overrides": ["seed=1", "data=digits"], "status": "failed", "run_dir": "s/0"},
    ...     {"job": 1, "overrides": ["seed=2", "data=digits"], "status": "finished", "val": 0.5, "run_dir": "s/1"}])
    >>> names
    ['job', 'seed', 'status', 'val', 'run']
    >>> rows
    [['0', '1', 'failed', '', 's/0'], ['1', '2', 'finished', '0.5000', 's/1']]
    """
    settings = [dict(word.partition("=")[::2] for word in record["overrides"]) for record in records]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    swept = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    measured = [key for key in _MEASURED if any(key in record for record in records)]
    rows = []
    for record, setting in zip(records, settings, strict=True):
        figures = [
            "" if key not in record else f"{record[key]:.1f}" if key == "seconds" else f"{record[key]:.4f}"
            for key in measured
        ]
        own = [_short(setting.get(key, "")) for key in swept]
        rows.append([str(record["job"]), *own, record["status"], *figures, record["run_dir"]])
    return ["job", *(key.lstrip("+~") for key in swept), "status", *measured, "run"], rows


def _short(value: str) -> str:
    """Shorten a sampled number to four digits; the job's record keeps all digits.

    >>> _short("0.0012520653814999472"), _short("0.5"), _short("gradual")
    ('0.001252', '0.5', 'gradual')
    """
    return f"{float(value):.4g}" if re.fullmatch(r"\d+\.\d{5,}(e-\d+)?", value) else value


def best(records: Sequence[dict[str, Any]]) -> str | None:
    """Return a line that names the best job by the monitored validation metric; None if there is no such job.

    >>> best([{"job": n, "monitor": "val/loss", "monitored": loss} for n, loss in enumerate((0.5, 0.25))])
    'best val/loss: job 1, 0.2500'
    """
    known = [record for record in records if math.isfinite(record.get("monitored", math.nan))]
    if not known or len({record["monitor"] for record in known}) > 1:
        return None
    choose = min if smaller_is_better(known[0]["monitor"]) else max
    chosen = choose(known, key=lambda record: float(record["monitored"]))
    return f"best {chosen['monitor']}: job {chosen['job']}, {chosen['monitored']:.4f}"


def smaller_is_better(monitor: str) -> bool:
    """Whether smaller values of a metric are better, by the same rule that a run uses to select its best epoch."""
    return monitor.endswith(("loss", "ece"))


def _failure(failed: Sequence[dict[str, Any]], count: int, folder: Path) -> Exception:
    """Return one error for all failed jobs, with jobs of the same message grouped."""
    if not count:
        return RunError(f"No job of the sweep started. Look for the launcher's output in {folder}.")
    by_message: dict[str, list[str]] = {}
    for record in failed:
        by_message.setdefault(record["message"], []).append(str(record["job"]))
    lines = [f"{len(failed)} of {count} jobs failed; see {folder / JOBS}/<job>.log"]
    for message, jobs in by_message.items():
        lines.append(f"job {', '.join(jobs)}: {message}")
    text = "\n".join(lines)
    return UserError(text) if all(record.get("mistake") for record in failed) else RunError(text)
