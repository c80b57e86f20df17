"""Read the cells of a table file row by row: CSV and TSV with the usual separators and encodings, and Parquet.

Training, evaluation and prediction read tables with these functions, so that all of them accept the same files.
"""

import csv
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.column_names import likely_column
from finetune.errors import UserError, did_you_mean, first_line, shortened
from finetune.safe_files import LONGEST_PATH, check_regular, check_row_count, open_table

TABLES = (".csv", ".tsv", ".parquet")
# a bound, because a Parquet file can hold a billion equal rows in a few bytes
MOST_ROWS = 100_000_000
_BATCH = 10_000
_BUFFER = 2**16


@dataclass(frozen=True)
class TableRows:
    """An open table.

    Args:
        name: Name of the table in messages, such as ``data.path='t.csv'``.
        columns: Names of its columns.
        read: Function that takes positions in ``columns`` and yields their cells, row by row.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[int]], Iterator[tuple[Any, ...]]]

    def position(self, column: str, *, setting: str) -> int:
        """Return the position of a column.

        Raises:
            UserError: There is no such column, or more than one.
        """
        if self.columns.count(column) > 1:
            raise UserError(
                f"{self.name}: column names must be unique. There are {self.columns.count(column)} columns {column!r}. "
                "Rename all but one."
            )
        if column not in self.columns:
            raise UserError(
                f"data.{setting}={column!r}: not a column of {self.name}. Columns: {shortened(self.columns, 8)}."
                f"{_meant(setting, column, self.columns)}"
            )
        return self.columns.index(column)


def _meant(setting: str, column: str, columns: Sequence[str]) -> str:
    near = likely_column(setting, columns)
    if near is None:
        return did_you_mean(column, columns) or f" Name the right one: data.{setting}=NAME."
    return f" Name the right one: data.{setting}={near}."


@contextmanager
def open_rows(path: str | Path, *, name: str) -> Iterator[TableRows]:
    """Open a table file by its suffix.

    Cells of a text table are strings; the separator is the most frequent of comma, semicolon and tab in its first line. Cells
    of a Parquet file have their own types.

    Args:
        path: Path of the table, a ``.parquet`` or a text file.
        name: Name of the table in messages.

    Raises:
        UserError: The table cannot be read.
    """
    if str(path).lower().endswith(".parquet"):
        with _parquet(path, name) as table:
            yield table
        return
    with open_table(path, name=name) as file:
        try:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            rows = csv.reader(itertools.chain([first], file), delimiter=delimiter)
            header = tuple(cell.strip() for cell in next(rows, []))
            yield TableRows(name, header, lambda chosen: _text_cells(rows, len(header), chosen, name))
        except csv.Error as error:
            raise UserError(f"{name}: is not a readable table. {error}.") from None
        except UnicodeError as error:
            raise UserError(f"{name}: is not a readable table. {error}. Save it as UTF-8.") from None


def _text_cells(rows: Iterator[list[str]], width: int, chosen: Sequence[int], name: str) -> Iterator[tuple[Any, ...]]:
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != width:
            raise UserError(
                f"{name}: every row must have {width} cells. Line {number} has {len(row)}. "
                "Quote cells that contain the separator."
            )
        yield tuple(row[position] for position in chosen)


@contextmanager
def _parquet(path: str | Path, name: str) -> Iterator[TableRows]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError(
            f"{name}: Parquet needs pyarrow. Install it with: pip install 'stagewise-finetune[parquet]'"
        ) from None
    check_regular(path, name=name)
    try:
        # small buffers: otherwise whole columns of a row group, often all rows, are held in memory
        with pq.ParquetFile(os.fspath(path), buffer_size=_BUFFER, pre_buffer=False) as file:
            rows = file.metadata.num_rows
            if rows > MOST_ROWS:
                raise UserError(f"{name}: holds more than {MOST_ROWS:,} rows: {rows:,}. Split it.")
            check_row_count(rows, path, name=name)
            columns = tuple(file.schema_arrow.names)
            yield TableRows(name, columns, lambda chosen: _parquet_cells(file, columns, chosen, name))
    except (pa.ArrowException, OSError) as error:
        why = first_line(error)
        raise UserError(f"{name}: is not a readable Parquet file. {why}") from None


def _parquet_cells(file: Any, columns: Sequence[str], chosen: Sequence[int], name: str) -> Iterator[tuple[Any, ...]]:
    for batch in file.iter_batches(batch_size=_BATCH, columns=[columns[position] for position in chosen]):
        parts = [batch.column(columns[position]).to_pylist() for position in chosen]
        for position, cells in zip(chosen, parts, strict=True):
            if any(isinstance(cell, (str, bytes)) and len(cell) > LONGEST_PATH for cell in cells):
                raise UserError(
                    f"{name}: is not a readable table. A cell of column {columns[position]!r} has more than "
                    f"{LONGEST_PATH:,} characters."
                )
        yield from zip(*parts, strict=True)
