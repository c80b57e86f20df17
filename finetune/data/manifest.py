"""Manifests, tables of images with their labels: read CSV, TSV and Parquet, and write the splits of a run.

Columns are identified by name. Paths are relative to the table's folder unless a root is given. Several labels of one
image are given in one column with a separator, or in one column of zeros and ones for each class.
"""

import csv
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from finetune.atomic_files import atomic_path
from finetune.data.groups import groups_of_cells
from finetune.data.index import SPLITS, DataProblem, Index, natural_order
from finetune.data.label_cells import (
    MISSING,
    LabelColumn,
    clean_label,
    hidden_labels,
    is_missing,
    number_of,
    reordered,
    taken,
    text_of,
)
from finetune.data.listing import UNASSIGNED, Listing, Use, check_classes, without_rows
from finetune.data.path_table import PathAppender, PathTable
from finetune.data.split_names import split_names
from finetune.data.table_file import TABLES, TableRows, open_rows
from finetune.errors import UserError, shortened
from finetune.safe_files import check_regular

SEPARATOR = "|"

# column of the class index of each label, which a run writes if the names alone would not restore its classes
# column of the content hash, by which another run recognises an image: 32 hexadecimal digits
CONTENT = "content"
_CLASS_INDEX = "class_index"
_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_PART = 2**16
_UNASSIGNED_WORDS = frozenset((*MISSING, "unassigned", "none"))


def check_manifest(path: str) -> str:
    """Return the absolute path of a manifest.

    Raises:
        UserError: The file does not exist, or its suffix is not that of a table.
    """
    full = os.path.abspath(path)
    if not os.path.exists(full):
        raise UserError(f"data.path={path!r}: no such file. Looked for {full}. Give a CSV, TSV or Parquet file.")
    check_regular(full, name=f"data.path={path!r}")
    if not full.lower().endswith(TABLES):
        raise UserError(
            f"data.path={path!r}: must end in .csv, .tsv or .parquet. Rename the file, or save it in one of these formats."
        )
    return full


@dataclass(frozen=True, kw_only=True)
class ManifestColumns:
    """The columns of a table of images.

    Args:
        path_column: Column of the image paths.
        label_column: Column of the labels.
        split_column: Column of the splits (train, val or test); the column may be missing, and its cells may be empty.
        label_separator: Separator of several labels in one cell; an empty cell then means no label. None for one label
            per image.
        label_columns: Columns of 0 and 1, one for each class, used instead of ``label_column``.
        group_column: Column of the groups, which generated splits never divide; a cell may be empty. None for no groups.
    """

    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"
    label_separator: str | None = None
    label_columns: Sequence[str] = ()
    group_column: str | None = None


def read_manifest(
    path: str, *, root: str | None = None, columns: ManifestColumns = ManifestColumns(), use: Use = "train"
) -> Listing:
    """List the samples of a table; no image is opened.

    Args:
        path: Path of the table.
        root: Folder that the table's paths are relative to; None for the table's own folder.
        columns: Columns to read.
        use: Purpose of the data set.

    Raises:
        UserError: The table, a column or a value is wrong.
    """
    if columns.label_separator == "":
        raise UserError(
            "data.label_separator='': must not be empty. Give the text between two labels of a cell, or leave it out for one "
            "label per image."
        )
    full = check_manifest(path)
    where = f"data.path={path!r}"
    home = os.path.abspath(root) if root else os.path.dirname(full)
    with open_rows(full, name=where) as table:
        reader = _ManifestReader(table, columns, where=where, home=home)
        reader.read()
    return check_classes(reader.listing(use))


class _ManifestReader:
    """Reads the rows of a table once, into compact columns: a million rows take some tens of megabytes."""

    def __init__(self, table: TableRows, columns: ManifestColumns, *, where: str, home: str) -> None:
        self.table, self.where, self.home = table, where, home
        self.path_column, self.split_column = columns.path_column, columns.split_column
        self.group_column, self.label_columns = columns.group_column, tuple(columns.label_columns)
        label_column, label_separator = columns.label_column, columns.label_separator
        # the labels of a table that a run wrote are taken verbatim
        numbered = _CLASS_INDEX in table.columns and label_column == "label" and not self.label_columns
        self.positions = {"path": table.position(self.path_column, setting="path_column")}
        for name in self.label_columns:
            self.positions[f"label {name}"] = table.position(name, setting="label_columns")
        if not self.label_columns:
            self.positions["label"] = table.position(label_column, setting="label_column")
        if self.split_column in table.columns or self.split_column != "split":
            self.positions["split"] = table.position(self.split_column, setting="split_column")
        if self.group_column:
            self.positions["group"] = table.position(self.group_column, setting="group_column")
        if numbered:
            self.positions["number"] = table.position(_CLASS_INDEX, setting="label_column")
        self.several = label_separator is not None
        self.labels = LabelColumn(
            column=label_column, where=where, separator=label_separator, verbatim=numbered and label_separator is None
        )
        self.numbers: dict[str, str] = {}  # label -> its class_index
        self.paths = PathAppender()
        self.hashes, self.codes, self.split_codes = array("i"), array("i"), array("h")
        self.splits: dict[str, int] = {}
        self.groups: list[str] = []
        self.group_names: dict[str, str] = {}
        self.flags = [bytearray() for _ in self.label_columns]

    def read(self) -> None:
        """Read all rows.

        Raises:
            UserError: A cell is wrong.
        """
        keys = list(self.positions)
        place = {key: number for number, key in enumerate(keys)}
        label, split, group, number = (place.get(key, -1) for key in ("label", "split", "group", "number"))
        flagged = [place[f"label {name}"] for name in self.label_columns]
        for row, cells in enumerate(self.table.read([self.positions[key] for key in keys]), start=1):
            path = self._path(cells[0], row)
            self.paths.append(path)
            self.hashes.append(
                hash(path) >> 32
            )  # 32 bits suffice to find candidates, whose whole paths are then compared
            if number >= 0 and _no_numbered_label(cells[label], cells[number]):
                cells = (*cells[:label], "", *cells[label + 1 :])
            if label >= 0:
                self.codes.append(self.labels.code(cells[label], row))
            for column, name, at in zip(self.flags, self.label_columns, flagged, strict=True):
                column.append(_flag(cells[at], name, row, self.where))
            if split >= 0:
                cell = (
                    ""
                    if is_missing(cells[split])
                    else text_of(cells[split], row, self.split_column, self.where).strip()
                )
                self.split_codes.append(self.splits.setdefault(cell, len(self.splits)))
            if group >= 0:
                cell = "" if is_missing(cells[group]) else str(cells[group])
                self.groups.append(self.group_names.setdefault(cell, cell))
            if number >= 0:
                self.numbers.setdefault(str(cells[label]), str(cells[number]))

    def listing(self, use: Use) -> Listing:
        """Return the samples.

        Raises:
            UserError: The table has no rows, or its columns are wrong.
        """
        paths = self.paths.build()
        if not len(paths):
            raise UserError(f"{self.where}: no images found. The table has no rows.")
        splits = self._splits(len(paths))
        if any(SEPARATOR in number for number in self.numbers.values()):
            self.labels.separator = self.labels.separator or SEPARATOR
        codes = self.labels.without_missing(np.frombuffer(self.codes, np.int32))
        hidden = np.zeros(len(paths), np.bool_) if self.label_columns else self.labels.hidden(codes, splits)
        targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
        if self.label_columns:
            classes = [clean_label(name) for name in self.label_columns]
            targets = np.stack([np.frombuffer(column, np.uint8) for column in self.flags], axis=1)
        else:
            classes, targets = self._classes(codes, hidden)
        _no_conflicts(paths, np.frombuffer(self.hashes, np.int32), splits, targets, self.where)
        whole = (splits != UNASSIGNED).all()
        given = [name for number, name in enumerate(SPLITS) if (splits[~hidden] == number).any()]
        if whole and "val" in given and "test" not in given and not hidden.any():
            # every row has a split, so no test split is made from the training rows
            given.append("test")
        listing = Listing(
            origin=self.where,
            root=self.home,
            classes=tuple(classes),
            paths=paths,
            targets=targets,
            splits=splits,
            given=tuple(given),
            groups=groups_of_cells(self.groups, setting=f"data.group_column={self.group_column!r}")
            if self.group_column
            else None,
            problems=tuple(self._problems(hidden, splits)),
            use=use,
        )
        return without_rows(listing, np.flatnonzero(hidden)) if hidden.any() else listing

    def _path(self, cell: Any, row: int) -> str:
        if is_missing(cell):
            raise UserError(
                f"{self.where}: column {self.path_column!r} must not be empty. It is in row {row}. Give the path, or remove the "
                "row."
            )
        if not isinstance(cell, str):
            raise UserError(
                f"{self.where}: column {self.path_column!r} must hold paths. Row {row} holds {str(cell)[:40]!r}. Give the "
                "column of the paths as data.path_column=NAME."
            )
        path = cell.strip()
        # a file name may end in a blank
        return cell if path != cell and os.path.lexists(os.path.join(self.home, cell)) else path

    def _splits(self, rows: int) -> npt.NDArray[np.int8]:
        if "split" not in self.positions:
            return np.full(rows, UNASSIGNED, np.int8)
        named = [cell for cell in self.splits if cell.casefold() not in _UNASSIGNED_WORDS and cell not in MISSING]
        known = split_names(named)
        if wrong := sorted(set(named) - set(known)):
            raise UserError(
                f"{self.where}: column {self.split_column!r} must hold train, val or test. "
                f"Found {shortened([repr(cell) for cell in wrong])}. Correct them, or leave the cells empty."
            )
        position = [SPLITS.index(known[cell]) if cell in known else UNASSIGNED for cell in self.splits]
        return taken(np.array(position, np.int8), np.frombuffer(self.split_codes, np.int16))

    def _classes(
        self, codes: npt.NDArray[np.int32], hidden: npt.NDArray[np.bool_]
    ) -> tuple[list[str], npt.NDArray[np.int64] | npt.NDArray[np.uint8]]:
        if hidden.all():
            raise UserError(
                f"{self.where}: no labels found. All of column {self.labels.column!r} is empty. Give the column of the labels "
                "as data.label_column=NAME."
            )
        if hidden.any():
            # these rows are dropped later; until then their code must be that of a class
            codes = np.where(hidden, codes[~hidden][0], codes)
        classes, targets = self.labels.classes(codes)
        numbers = (
            {
                name: int(number)
                for label, joined in self.numbers.items()
                for name, number in zip(label.split(SEPARATOR), joined.split(SEPARATOR), strict=False)
                if number.isdigit()
            }
            if self.labels.separator
            else {label: int(number) for label, number in self.numbers.items() if number.isdigit()}
        )
        return reordered(classes, targets, numbers) if numbers else (classes, targets)

    def _problems(self, hidden: npt.NDArray[np.bool_], splits: npt.NDArray[np.int8]) -> Iterator[DataProblem]:
        yield from hidden_labels(hidden, splits)
        joined = {name: raws for name, raws in self.labels.spellings.items() if len(raws) > 1}
        if joined:
            yield DataProblem(
                kind="labels alike",
                severity="warning",
                text=f"labels that differ only in blanks at their ends or in Unicode form are read as one: "
                f"{shortened(list(joined))}",
                remedy="Spell them alike if they are one class, or give one of them another name.",
                files=tuple(" = ".join(map(repr, sorted(raws))) for raws in joined.values()),
            )
        if len(self.splits) and (other := self._other_spellings()):
            yield DataProblem(
                kind="split names",
                severity="note",
                text=f"splits are read as {shortened(other)}",
                remedy="Nothing to do.",
            )

    def _other_spellings(self) -> list[str]:
        known = split_names([cell for cell in self.splits if cell.casefold() not in _UNASSIGNED_WORDS])
        return [
            f"{cell} = {split}" for cell, split in known.items() if cell.lower() not in (*SPLITS, "valid", "validation")
        ]


def read_columns(path: str) -> dict[str, list[str]]:
    """Return the cells of each column of a table as strings; a missing cell is empty.

    Raises:
        UserError: The table cannot be read.
    """
    full = check_manifest(path)
    with open_rows(full, name=f"data.path={path!r}") as table:
        columns: dict[str, list[str]] = {name: [] for name in table.columns}
        for cells in table.read(range(len(table.columns))):
            for name, cell in zip(table.columns, cells, strict=True):
                columns[name].append("" if is_missing(cell) else str(cell))
    return columns


def write_manifest(index: Index, path: Path) -> None:
    """Write the samples of a run with their splits, as a table that :func:`read_manifest` reads.

    Raises:
        UserError: The data is multi-label and a class name contains the separator.
    """
    with _table(path) as file:
        writer = csv.writer(file)
        groups, numbered = index.groups, _needs_numbers(index)
        writer.writerow(
            ["path", "label", "split", *(["group"] if groups else []), *([_CLASS_INDEX] if numbered else []), CONTENT]
        )
        for row in range(len(index)):
            group = [groups.name(row)] if groups else []
            number = [_number(index, row)] if numbered else []
            content = index.content[row].tobytes().hex()
            writer.writerow([index.path(row), _label(index, row), SPLITS[index.splits[row]], *group, *number, content])


def _needs_numbers(index: Index) -> bool:
    """Tell whether the names alone would not restore the classes and their order."""
    names = list(index.classes)
    as_read = [clean_label(name) for name in names if name not in MISSING]
    return index.multi_label or names != natural_order(as_read) or _equal_numbers(names)


def _equal_numbers(names: Iterable[str]) -> bool:
    values = [value for name in names if (value := number_of(name)) is not None]
    return len(set(values)) < len(values)


def _number(index: Index, row: int) -> str:
    if not index.multi_label:
        return str(int(index.targets[row]))
    # the separator after each number shows that there may be several
    return "".join(f"{target}{SEPARATOR}" for target in np.flatnonzero(index.targets[row]))


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
            f"data.label_columns: class names must not contain {SEPARATOR!r}. Found {shortened(names)}. Rename the columns."
        )
    return SEPARATOR.join(names)


def _no_numbered_label(label: Any, number: Any) -> bool:
    """Tell whether a label is missing; one that is spelt like a missing value, such as NA, is a class if a run numbered it."""
    numbered = isinstance(label, str) and label != "" and (str(number).isdigit() or SEPARATOR in str(number))
    return is_missing(label) and not numbered


def _flag(cell: Any, name: str, row: int, where: str) -> int:
    if is_missing(cell):
        raise UserError(
            f"{where}: column {name!r} must hold 0 or 1 in every row. It is empty in row {row}. Fill in 0 where the image does "
            "not show it, or leave the row out where that is not known."
        )
    text = str(cell).strip().lower()
    if text not in _FLAGS:
        raise UserError(f"{where}: column {name!r} must hold 0 or 1. Found {text!r} in row {row}. Correct it.")
    return _FLAGS[text]


def _no_conflicts(
    paths: PathTable,
    hashes: npt.NDArray[np.int32],
    splits: npt.NDArray[np.int8],
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    where: str,
) -> None:
    """Refuse files that are listed twice: they would count twice, and their labels or splits may differ."""
    ordered = np.sort(hashes)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    first: dict[str, int] = {}
    repeated: list[str] = []
    differ: list[str] = []
    # in parts: a mask of a million rows would be the largest array of all
    rows = (
        start + row
        for start in range(0, len(hashes), _PART)
        for row in np.flatnonzero(np.isin(hashes[start : start + _PART], several)).tolist()
    )
    for row in rows:
        path = paths[row]
        one = first.setdefault(path, row)
        if one == row:
            continue
        repeated.append(path)
        if splits[one] != splits[row] or (targets[one] != targets[row]).any():
            differ.append(path)
    if repeated:
        what = f"with another label or split: {shortened(differ)}" if differ else shortened(repeated)
        raise UserError(f"{where}: every file must be listed once. Listed again {what}. Keep one row of each.")
