"""Predictions as CSV, JSON Lines or Parquet, written row by row; the file appears once it is complete."""

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.atomic_files import atomic_path
from finetune.errors import UserError
from finetune.file_schema import LABELS
from finetune.plain import Json
from finetune.terminal import csv_cell, encodable

_PARQUET_ROWS = 50_000

# value of a further column
Cell = str | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row of the output.

    Args:
        path: Path of the image as the user gave it.
        top: Most probable classes with their probabilities; empty if the image cannot be read.
        error: Reason why the image cannot be read; empty otherwise.
        labels: For multi-label models, the classes that the image shows, and for others what is predicted in place of the most
            probable class; None for that class.
        extra: Values of the further columns.
    """

    path: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""
    labels: tuple[str, ...] | None = None
    extra: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def predicted(self) -> str:
        """The most probable class, or all labels joined by ``;``; empty if the image cannot be read."""
        if self.labels is not None:
            return LABELS.join(self.labels)
        return self.top[0][0] if self.top else ""

    @property
    def probability(self) -> float | None:
        """Probability of the most probable class; None if the image cannot be read."""
        return self.top[0][1] if self.top else None


def check_output(output: Path) -> None:
    """Check that rows can be written to ``output``.

    Raises:
        UserError: The suffix is unknown, the path is a folder, or the Parquet library is missing.
    """
    check_file(output, suffixes=WRITERS, name="--output")


def check_file(path: Path, *, suffixes: Iterable[str], name: str) -> None:
    """Check that a file whose format is chosen by its suffix can be written.

    Args:
        path: File to write.
        suffixes: Known suffixes.
        name: Name of the setting, for messages.

    Raises:
        UserError: The suffix is unknown, the path is a folder, or the Parquet library is missing.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{name} {path}: the suffix chooses the form. Use one of {', '.join(suffixes)}.")
    if path.is_dir():
        raise UserError(f"{name} {path}: must be a file. It is a folder.")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401 (checked before hours of work, not after)
        except ImportError:
            raise UserError(
                f"{name} {path}: Parquet needs pyarrow. Install with: pip install 'stagewise-finetune[parquet]'"
            ) from None


def write_predictions(
    rows: Iterable[Prediction], output: Path, *, top_k: int, excel: bool = False, extra: Sequence[str] = ()
) -> tuple[int, int]:
    """Write all rows atomically.

    Args:
        rows: Rows in their order.
        output: File to write; its suffix chooses the form.
        top_k: Number of classes in each row.
        excel: Whether CSV begins with the mark by which Excel knows UTF-8. Python's ``csv`` takes the mark for a part of the
            first column's name, so it is not the default.
        extra: Names of the further columns that each row has.

    Returns:
        Number of rows, and number of unreadable images among them.
    """
    counts = [0, 0]

    def counted() -> Iterator[Prediction]:
        for row in rows:
            counts[0] += 1
            counts[1] += bool(row.error)
            yield row

    with atomic_path(output) as part:
        if output.suffix == ".csv":
            _write_csv(counted(), part, top_k, extra, encoding="utf-8-sig" if excel else "utf-8")
        else:
            WRITERS[output.suffix](counted(), part, top_k, extra)
    return counts[0], counts[1]


def columns(top_k: int, extra: Sequence[str] = ()) -> list[str]:
    """Return the column names of CSV and Parquet.

    >>> columns(2)
    ['path', 'predicted', 'probability', 'predicted_2', 'probability_2', 'error']
    """
    further = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("predicted", "probability")]
    return ["path", "predicted", "probability", *further, *extra, "error"]


def _cells(row: Prediction, top_k: int, text: Callable[[str], str]) -> list[Any]:
    further = list(row.top[1:]) + [("", None)] * (top_k - max(1, len(row.top)))
    pairs = [(row.predicted, row.probability), *further]
    answers = itertools.chain.from_iterable((text(name), share) for name, share in pairs)
    others = (text(value) if isinstance(value, str) else value for value in row.extra.values())
    return [text(row.path), *answers, *others, text(row.error)]


def _csv_text(cell: Any) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return repr(cell) if isinstance(cell, float) else "" if cell is None else str(cell)


def _write_csv(
    rows: Iterator[Prediction], part: Path, top_k: int, extra: Sequence[str], encoding: str = "utf-8"
) -> None:
    with part.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns(top_k, extra))
        for row in rows:
            writer.writerow([_csv_text(cell) for cell in _cells(row, top_k, csv_cell)])


def _write_jsonl(rows: Iterator[Prediction], part: Path, top_k: int, extra: Sequence[str]) -> None:
    with part.open("w", encoding="utf-8", newline="") as file:
        for row in rows:
            value: dict[str, Json] = {"path": encodable(row.path), "predicted": row.predicted}
            value["probability"] = row.probability
            if top_k > 1:
                value["top"] = [{"class": name, "probability": share} for name, share in row.top]
            value |= row.extra
            value["error"] = encodable(row.error)
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterator[Prediction], part: Path, top_k: int, extra: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"unknown_score": pa.float64(), "known": pa.bool_(), "accepted": pa.bool_()}
    schema = pa.schema(
        [
            (name, pa.float64() if name.startswith("probability") else types.get(name, pa.string()))
            for name in columns(top_k, extra)
        ]
    )
    with pq.ParquetWriter(part, schema) as writer:
        while batch := list(itertools.islice(rows, _PARQUET_ROWS)):
            table = list(zip(*(_cells(row, top_k, encodable) for row in batch), strict=True))
            writer.write_table(pa.table([pa.array(c, f.type) for c, f in zip(table, schema, strict=True)], schema))


WRITERS: dict[str, Callable[[Iterator[Prediction], Path, int, Sequence[str]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
