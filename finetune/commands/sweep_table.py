"""The table of a sweep: one row a job, from the records that the jobs wrote, failed ones included.

It is written when the sweep ends, and by ``finetune sweep-table`` at any time.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune.atomic_files import write_text
from finetune.commands.jobs import NOT_STARTED, JobRecord, with_metrics
from finetune.commands.options import Arguments, home_path
from finetune.errors import RunError, UserError, first_line
from finetune.file_lock import is_held
from finetune.plain import from_plain
from finetune.resume_command import resume_command
from finetune.run_folder import JOBS, RunFolder
from finetune.run_names import RECORD
from finetune.safe_files import read_json

TABLE = "sweep.csv"
_MEASURED = ("val", "test", "seconds")
_LOST = "its process exited before it reported a result"

ABOUT = """\
Write the table of a sweep again from what its jobs have recorded: while it runs, after its launcher died, or after jobs were
resumed one by one. DIR is the folder of the sweep, which it printed first and hydra.sweep.dir names. Nothing is trained."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune sweep-table`` and return the exit status."""
    parser = Arguments("sweep-table", ABOUT)
    parser.add_argument("folder", metavar="DIR", type=home_path)
    folder: Path = parser.read(argv).folder
    if not (folder / JOBS).is_dir():
        raise UserError(
            f"DIR='{folder}': not the folder of a sweep. It has no {JOBS}/. A sweep prints its folder first, and hydra.sweep.dir "
            "chooses it."
        )
    records = [_as_it_stands(folder, record) for record in read_records(folder)]
    if not records:
        raise UserError(f"DIR='{folder}': no job of this sweep has started.")
    write_table(folder, records)
    if any(record.status == "failed" for record in records):
        print(_failure(records, folder, None))
    return 0


def _as_it_stands(folder: Path, record: JobRecord) -> JobRecord:
    """Return the record of a job by what its run is now: finished since, running, or stopped without a word."""
    beside = folder / str(record.job)
    # the sweep's folder may have been moved
    record = replace(record, run_dir=str(beside)) if beside.is_dir() else record
    if RunFolder(Path(record.run_dir)).is_finished:
        return replace(with_metrics(record), status="finished", message=None, mistake=None)
    if record.status == "running" and not is_held(Path(record.run_dir)):
        return replace(record, status="stopped")
    return record


def conclude(folder: Path, *, ended: bool, cause: BaseException | None = None) -> None:
    """Write and print the table of a sweep.

    Args:
        folder: Folder of the sweep.
        ended: Whether all jobs are done; if not, jobs that started and did not end count as stopped.
        cause: Error by which the launcher or the sweeper ended the sweep; None if it ended by itself.

    Raises:
        UserError: Jobs failed, all of them by user errors.
        RunError: Jobs failed.
    """
    status = "failed" if ended else "stopped"
    records = [
        replace(record, status=status, message=_LOST) if record.status == "running" else record
        for record in read_records(folder)
    ]
    write_table(folder, records)
    statuses = [record.status for record in records]
    if "failed" in statuses or set(statuses) <= {NOT_STARTED} or (ended and NOT_STARTED in statuses):
        problem = _failure(records, folder, cause)
        if ended:
            raise problem
        print(problem, flush=True)


def read_records(folder: Path) -> list[JobRecord]:
    """Return what the jobs of a sweep have recorded, in their order.

    Raises:
        UserError: A record is damaged.
    """
    files = (folder / JOBS).glob("*.json")
    records = [from_plain(JobRecord, read_json(file, dict), name=str(file)) for file in files]
    return sorted(records, key=lambda record: record.job)


def write_table(folder: Path, records: Sequence[JobRecord]) -> None:
    """Write the table of a sweep, and print it with the best job and how stopped ones are continued."""
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
        if record.status == "stopped" and (Path(record.run_dir) / RECORD).is_file():
            line = resume_command(record.run_dir)
            print(f"job {record.job} was stopped; continue with: {line}")


def table(records: Sequence[JobRecord]) -> tuple[list[str], list[list[str]]]:
    """Return column names and one row per job: the overrides in which jobs differ, the metrics, and the run folder.

    >>> failed = JobRecord(job=0, overrides=("seed=1", "a=1"), run_dir="s/0", monitor="val/acc", status="failed")
    >>> done = replace(failed, job=1, overrides=("seed=2", "a=1"), run_dir="s/1", status="finished", val=0.5)
    >>> names, rows = table([failed, done])
    >>> names
    ['job', 'seed', 'status', 'val', 'run']
    >>> rows
    [['0', '1', 'failed', '', 's/0'], ['1', '2', 'finished', '0.5000', 's/1']]
    """
    settings = [dict(word.partition("=")[::2] for word in record.overrides) for record in records]
    keys = list(dict.fromkeys(key for setting in settings for key in setting))
    swept = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    measured = [key for key in _MEASURED if any(getattr(record, key) is not None for record in records)]
    rows = []
    for record, setting in zip(records, settings, strict=True):
        values = ((key, getattr(record, key)) for key in measured)
        figures = [
            "" if value is None else f"{value:.1f}" if key == "seconds" else f"{value:.4f}" for key, value in values
        ]
        own = [_short(setting.get(key, "")) for key in swept]
        rows.append([str(record.job), *own, record.status, *figures, record.run_dir])
    return ["job", *(key.lstrip("+~") for key in swept), "status", *measured, "run"], rows


def _short(value: str) -> str:
    """Shorten a sampled number to four digits; the job's record keeps all digits.

    >>> _short("0.0012520653814999472"), _short("0.5"), _short("gradual")
    ('0.001252', '0.5', 'gradual')
    """
    return f"{float(value):.4g}" if re.fullmatch(r"\d+\.\d{5,}(e-\d+)?", value) else value


def best(records: Sequence[JobRecord]) -> str | None:
    """Return a line that names the best job by the monitored validation metric; None if there is no such job.

    >>> job = JobRecord(
    ...     job=0, overrides=(), run_dir="s/0", monitor="val/loss", status="finished", monitored=0.5, minimize=True
    ... )
    >>> best([job, replace(job, job=1, monitored=0.25)])
    'best val/loss: job 1, 0.2500'
    """
    measured = [(record.monitored, record) for record in records if record.monitored is not None]
    known = [(value, record) for value, record in measured if math.isfinite(value)]
    if not known or len({record.monitor for _, record in known}) > 1:
        return None
    choose = min if known[0][1].minimize else max
    value, chosen = choose(known, key=lambda entry: entry[0])
    return f"best {chosen.monitor}: job {chosen.job}, {value:.4f}"


def _failure(records: Sequence[JobRecord], folder: Path, cause: BaseException | None) -> Exception:
    """Return one error for all jobs that failed or never started, with jobs of the same message grouped.

    The cause is named where the jobs' own messages do not tell all: by it their launcher ended.
    """
    failed = [record for record in records if record.status == "failed"]
    waiting = sum(record.status == NOT_STARTED for record in records)
    why = "" if cause is None else first_line(cause, with_type=not isinstance(cause, (UserError, RunError)))
    if waiting == len(records):
        started = f"No job of the sweep started.{why and ' ' + why}"
        return RunError(f"{started} The launcher's output, if it has any, is in {folder}.")
    by_message: dict[str, list[str]] = {}
    for record in failed:
        by_message.setdefault(record.message or "", []).append(str(record.job))
    never = f", {waiting} not started" if waiting else ""
    lines = [f"{len(failed)} of {len(records)} jobs failed{never}; see {folder / JOBS}/<job>.log"]
    for message, jobs in by_message.items():
        lines.append(f"job {', '.join(jobs)}: {message}")
    if why and (waiting or _LOST in by_message):
        lines.append(f"the sweep ended by: {why}")
    text = "\n".join(lines)
    mistakes = not waiting and all(record.mistake for record in failed)
    return UserError(text) if mistakes else RunError(text)
