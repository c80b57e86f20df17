"""The table of a sweep: one row a job, from the records that the jobs wrote, failed ones included."""

import csv
import io
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.atomic_files import write_text
from finetune.commands.jobs import JOBS, smaller_is_better
from finetune.errors import RunError, UserError
from finetune.safe_files import read_json

TABLE = "sweep.csv"
_MEASURED = ("val", "test", "seconds")


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
