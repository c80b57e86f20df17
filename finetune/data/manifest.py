"""Manifests, tables of images with their labels: reads CSV, TSV and Parquet, and writes the splits of a run.

Columns are identified by name. Paths are relative to the table's folder unless a root is given. Several labels of one
image are given in one column with a separator, or in one column of zeros and ones for each class.
"""

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from finetune.atomic_files import atomic_path
from finetune.data.groups import groups_of_cells
from finetune.data.index import SPLITS, Index, natural_order
from finetune.data.listing import UNASSIGNED, Listing, Use, check_classes
from finetune.data.path_table import path_table
from finetune.errors import UserError, did_you_mean, shortened
from finetune.safe_files import LONGEST_PATH, check_regular, check_row_count, open_table

SEPARATOR = "|"

_SPLIT_NAMES = {
    "": UNASSIGNED,
    "train": SPLITS.index("train"),
    "training": SPLITS.index("train"),
    "val": SPLITS.index("val"),
    "valid": SPLITS.index("val"),
    "validation": SPLITS.index("val"),
    "dev": SPLITS.index("val"),
    "test": SPLITS.index("test"),
}

Columns = dict[str, list[str]]
# a bound, because a Parquet file can hold a billion equal rows in a few bytes
MOST_ROWS = 100_000_000


def check_manifest(path: str) -> str:
    """Return the absolute path of a manifest.

    Raises:
        UserError: The file does not exist, or its suffix is not that of a table.
    """
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(full):
        raise UserError(f"data.path={path!r}: no such file. Looked for {full}. Give a CSV, TSV or Parquet file.")
    check_regular(full, name=f"data.path={path!r}")
    if not full.lower().endswith((".csv", ".tsv", ".parquet")):
        raise UserError(f"data.path={path!r}: must end in .csv, .tsv or .parquet.")
    return full


def read_manifest(
    path: str,
    *,
    root: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
    group_column: str | None = None,
    use: Use = "train",
) -> Listing:
    """List the samples of a table; no image is opened.

    Args:
        path: Path of the table.
        root: Folder that the table's paths are relative to; None for the table's own folder.
        path_column: Column of the image paths.
        label_column: Column of the labels.
        split_column: Column of the splits (train, val or test); it may be missing, and its cells may be empty.
        label_separator: Separator of several labels in one cell; an empty cell then means no label. None for one label
            per image.
        label_columns: Columns of 0 and 1, one for each class, used instead of ``label_column``.
        group_column: Column of the groups, which no made split parts; a cell may be empty. None for no groups.
        use: What the data set is for.

    Raises:
        UserError: The table, a column or a value is wrong.
    """
    full = check_manifest(path)
    where = f"data.path={path!r}"
    columns = _read_parquet(full) if full.lower().endswith(".parquet") else _read_text(full)
    paths = [cell.strip() for cell in _column(columns, path_column, "path_column", where)]
    if not paths:
        raise UserError(f"{where}: no images found. The table has no rows.")
    _no_empty(paths, path_column, where)
    splits = _splits(columns, split_column, where)
    if label_columns:
        classes = list(label_columns)
        cells = [_column(columns, name, "label_columns", where) for name in classes]
        targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8] = np.stack(
            [_flags(column, name, where) for column, name in zip(cells, classes, strict=True)], axis=1
        )
    else:
        labels = [cell.strip() for cell in _column(columns, label_column, "label_column", where)]
        if label_separator:
            classes, targets = _several(labels, label_separator)
        else:
            _no_empty(labels, label_column, where)
            classes = natural_order(labels)
            position = {name: target for target, name in enumerate(classes)}
            targets = np.array([position[label] for label in labels], np.int64)
    _no_conflicts(paths, splits, targets, where)
    groups = None
    if group_column:
        named = _column(columns, group_column, "group_column", where)
        groups = groups_of_cells(named, setting=f"data.group_column={group_column!r}")
    return check_classes(
        Listing(
            origin=where,
            root=os.path.abspath(os.path.expanduser(root)) if root else os.path.dirname(full),
            classes=tuple(classes),
            paths=path_table(paths),
            targets=targets,
            splits=splits,
            given=tuple(name for number, name in enumerate(SPLITS) if (splits == number).any()),
            groups=groups,
            use=use,
        )
    )


def read_columns(path: str) -> Columns:
    """Return the cells of each column of a table.

    Raises:
        UserError: The table cannot be read.
    """
    full = check_manifest(path)
    return _read_parquet(full) if full.lower().endswith(".parquet") else _read_text(full)


def write_manifest(index: Index, path: Path) -> None:
    """Write the samples of a run with their splits, as a table that :func:`read_manifest` reads.

    Raises:
        UserError: The data is multi-label and a class name contains the separator.
    """
    with _table(path) as file:
        writer = csv.writer(file)
        groups = index.groups
        writer.writerow(["path", "label", "split", *(["group"] if groups else [])])
        for row in range(len(index)):
            group = [groups.name(row)] if groups else []
            writer.writerow([index.path(row), _label(index, row), SPLITS[index.splits[row]], *group])


def write_skipped(index: Index, path: Path) -> None:
    """Write the files that were skipped, with the reasons."""
    write_left_out(index.skipped, path)


def write_left_out(files: Iterable[tuple[str, str]], path: Path) -> None:
    """Write a table of paths and reasons."""
    with _table(path) as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(files)


@contextmanager
def _table(path: Path) -> Iterator[TextIO]:
    """Open a new table that appears under its name only when it is complete."""
    with atomic_path(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield file


def _label(index: Index, row: int) -> str:
    if not index.multi_label:
        return index.classes[int(index.targets[row])]
    names = [index.classes[target] for target in np.flatnonzero(index.targets[row])]
    if any(SEPARATOR in name for name in names):
        raise UserError(
            f"data.label_columns: class names must not hold {SEPARATOR!r}. Found {shortened(names)}. Rename."
        )
    return SEPARATOR.join(names)


def _read_text(path: str) -> Columns:
    """Read the columns of a text table; the most frequent of comma, semicolon and tab in line 1 separates cells."""
    try:
        with open_table(path, name=f"data.path={path!r}") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            rows = csv.reader(itertools.chain([first], file), delimiter=delimiter)
            header = [name.strip() for name in next(rows, [])]
            columns: Columns = {name: [] for name in header}
            for number, row in enumerate(rows, start=2):
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"data.path={path!r}: every row must have {len(header)} cells. Line {number} has {len(row)}. "
                        "Quote cells that hold the separator."
                    )
                for name, cell in zip(header, row, strict=True):
                    columns[name].append(cell)
    except csv.Error as error:
        raise UserError(f"data.path={path!r}: is not a readable table. {error}.") from None
    return columns


def _read_parquet(path: str) -> Columns:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError(f"data.path={path!r}: Parquet needs pyarrow. Install stagewise-finetune[parquet].") from None
    try:
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
            if rows > MOST_ROWS:
                raise UserError(f"data.path={path!r}: holds more than {MOST_ROWS:,} rows: {rows:,}. Split it.")
            check_row_count(rows, path, name=f"data.path={path!r}")
            nested = [field.name for field in schema if pa.types.is_nested(field.type)]
            columns: Columns = {name: [] for name in schema.names if name not in nested}
            interned: dict[str, dict[str, str]] = {name: {} for name in columns}
            for batch in file.iter_batches(batch_size=10_000, columns=list(columns)):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    cells = ["" if value is None else str(value) for value in column.to_pylist()]
                    if any(len(cell) > LONGEST_PATH for cell in cells):
                        raise UserError(
                            f"data.path={path!r}: is not a readable table. A cell of column {name!r} has more than "
                            f"{LONGEST_PATH:,} characters."
                        )
                    # equal cells share one object, because labels and splits repeat, and paths may too
                    cells_seen = interned[name]
                    columns[name] += [
                        cells_seen.setdefault(cell, cell) if len(cells_seen) < 10_000 else cell for cell in cells
                    ]
    except (pa.ArrowException, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"data.path={path!r}: is not a readable Parquet file. {why}") from None
    return columns


def _column(columns: Columns, name: str, setting: str, where: str) -> list[str]:
    if name not in columns:
        raise UserError(
            f"data.{setting}={name!r}: not a column of {where}. Columns: {shortened(list(columns), 8)}."
            f"{did_you_mean(name, columns)}"
        )
    return columns[name]


def _splits(columns: Columns, name: str, where: str) -> npt.NDArray[np.int8]:
    if name not in columns:
        if name != "split":
            _column(columns, name, "split_column", where)
        return np.full(len(next(iter(columns.values()))), UNASSIGNED, np.int8)
    cells = [cell.strip().lower() for cell in columns[name]]
    if wrong := sorted({cell for cell in cells if cell not in _SPLIT_NAMES}):
        raise UserError(
            f"{where}: column {name!r} must hold train, val or test. Found {shortened([repr(cell) for cell in wrong])}."
        )
    return np.array([_SPLIT_NAMES[cell] for cell in cells], np.int8)


def _several(labels: Iterable[str], separator: str) -> tuple[list[str], npt.NDArray[np.uint8]]:
    sets = [{part.strip() for part in label.split(separator)} - {""} for label in labels]
    classes = natural_order(name for names in sets for name in names)
    position = {name: target for target, name in enumerate(classes)}
    targets = np.zeros((len(sets), len(classes)), np.uint8)
    for row, names in enumerate(sets):
        targets[row, [position[name] for name in names]] = 1
    return classes, targets


def _flags(cells: list[str], name: str, where: str) -> npt.NDArray[np.uint8]:
    meaning = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "": 0}
    try:
        return np.array([meaning[cell.strip().lower()] for cell in cells], np.uint8)
    except KeyError as error:
        raise UserError(f"{where}: column {name!r} must hold 0 or 1. Found {error.args[0]!r}.") from None


def _no_empty(cells: list[str], name: str, where: str) -> None:
    if empty := [number for number, cell in enumerate(cells, start=1) if not cell]:
        raise UserError(f"{where}: column {name!r} must not be empty. It is in row {shortened(empty)}.")


def _no_conflicts(
    paths: list[str],
    splits: npt.NDArray[np.int8],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    where: str,
) -> None:
    """Refuse files that are listed twice: they would count twice, and their labels or splits may differ."""
    if len(set(paths)) == len(paths):
        return
    first: dict[str, int] = {}
    repeated: list[str] = []
    differ: list[str] = []
    for row, path in enumerate(paths):
        one = first.setdefault(path, row)
        if one == row:
            continue
        # equal cells share one object, so that millions of these take little memory
        repeated.append(paths[one])
        if splits[one] != splits[row] or (targets[one] != targets[row]).any():
            differ.append(paths[one])
    what = f"with another label or split: {shortened(differ)}" if differ else shortened(repeated)
    raise UserError(f"{where}: every file must be listed once. Listed again {what}. Keep one row of each.")
