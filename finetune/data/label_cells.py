"""The labels in the cells of a table: which are classes, which are missing, and which cannot be read."""

import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.index import SPLITS, DataProblem, natural_order
from finetune.errors import UserError, shortened

# how pandas, R and databases write a missing value; the list is that of pandas' reader
MISSING = frozenset(
    (
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-NaN",
        "-nan",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
        "NaT",
    )
)
# the label of a sample of a hidden test split
_HIDDEN = frozenset(("-1", "-1.0"))
_NO_LABEL = -1
_PART = 2**16


def clean_label(text: str) -> str:
    """Return a label in the form of class names: without blanks at its ends, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def is_missing(cell: Any) -> bool:
    """Tell whether a cell holds no value.

    >>> [is_missing(cell) for cell in (None, float("nan"), "", " NA", "nan", "cat", 0)]
    [True, True, True, True, True, False, False]
    """
    return (
        cell is None
        or (isinstance(cell, float) and cell != cell)
        or (isinstance(cell, str) and cell.strip() in MISSING)
    )


# where several labels of an image can be in a table
_SEVERAL = (
    "Give several labels of an image as one text with data.label_separator, or as a column of 0 and 1 for each class: "
    "data.label_columns."
)


def text_of(cell: Any, row: int, column: str, where: str, *, advice: str = _SEVERAL) -> str:
    """Return a cell that is a string or a number as a string.

    Args:
        cell: The cell.
        row: Row of the cell, for messages.
        column: Column of the cell.
        where: Setting that names the table.
        advice: What to do about a cell that is neither.

    Raises:
        UserError: The cell is neither, or a string that is not valid Unicode.
    """
    if isinstance(cell, str):
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: must be in UTF-8. Column {column!r} holds {cell.encode('utf-8', 'surrogateescape')!r} in row {row}, "
                "which looks like Latin-1 or Windows-1252. Convert it: iconv -f WINDOWS-1252 -t UTF-8 TABLE > NEW_TABLE"
            ) from None
        return cell
    if isinstance(cell, (bytes, bytearray, list, tuple, dict, set, np.ndarray)):
        kind = "bytes" if isinstance(cell, (bytes, bytearray)) else "a list"
        raise UserError(
            f"{where}: column {column!r} must hold text or numbers. Row {row} holds {kind}: {str(cell)[:40]}. {advice}"
        )
    return str(cell)


class LabelColumn:
    """The labels of a table's rows, read one by one; equal labels are kept once.

    Args:
        column: Name of the column, for messages.
        where: Setting that names the table, for messages.
        separator: Separator of several labels in one cell; None for one label per image.
        verbatim: Whether labels are taken as they are written, as in a table that a run wrote.
        advice: What to do about a cell that is neither text nor a number.

    Attributes:
        spellings: The ways in which each label was written; they differ in blanks at the ends or in their Unicode form.
    """

    def __init__(
        self, *, column: str, where: str, separator: str | None, verbatim: bool, advice: str = _SEVERAL
    ) -> None:
        self.advice = advice
        self.column, self.where, self.separator, self.verbatim = column, where, separator, verbatim
        self.names: dict[str, int] = {}
        self.first_row: list[int] = []
        self.spellings: dict[str, set[str]] = {}

    def code(self, cell: Any, row: int) -> int:
        """Return the number of a cell's label, or -1 if it is missing."""
        if self.verbatim:
            name = str(cell)
        elif is_missing(cell):
            if self.separator is None:
                return _NO_LABEL
            name = ""
        else:
            raw = text_of(cell, row, self.column, self.where, advice=self.advice)
            name = clean_label(raw)
            self.spellings.setdefault(name, set()).add(raw)
        number = self.names.setdefault(name, len(self.names))
        if number == len(self.first_row):
            self.first_row.append(row)
        return number

    def without_missing(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return the codes with -1 for rows without a label, if each row has one label; several may be none."""
        if self.separator is not None or "" not in self.names:
            return codes
        return np.where(codes == self.names[""], np.int32(_NO_LABEL), codes)

    def hidden(self, codes: npt.NDArray[np.int32], splits: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
        """Return which rows belong to a hidden test split: all labels of the split are missing or -1.

        Raises:
            UserError: Another label is missing.
        """
        hidden = np.zeros(len(codes), np.bool_)
        missing = codes == _NO_LABEL
        minus = np.isin(codes, [number for name, number in self.names.items() if name in _HIDDEN])
        for split in np.unique(splits):
            rows = splits == split
            if split > 0 and ((missing | minus)[rows].all() and not minus[~rows & (splits <= 0)].any()):
                hidden |= rows
        if (wrong := np.flatnonzero(missing & ~hidden)).size:
            raise UserError(
                f"{self.where}: column {self.column!r} must not be empty. It is in row {shortened((wrong + 1).tolist())}. "
                f"Empty cells and NA, NaN, null, None are not labels. Fill them in, or remove the rows."
            )
        return hidden

    def classes(self, codes: npt.NDArray[np.int32]) -> tuple[list[str], npt.NDArray[np.int64] | npt.NDArray[np.uint8]]:
        """Return the classes in natural order, and the targets of the rows.

        Raises:
            UserError: Two labels are the same number, written in two ways.
        """
        used = np.unique(codes)
        names = list(self.names)
        if self.separator is None:
            if not self.verbatim:
                self._refuse_equal_numbers([names[number] for number in used])
            classes = natural_order(names[number] for number in used)
            position = {name: target for target, name in enumerate(classes)}
            return classes, taken(np.array([position.get(name, 0) for name in names], np.int64), codes)
        sets = [{part.strip() for part in _labels_of(name, self.separator)} - {""} for name in names]
        classes = natural_order(name for number in used for name in sets[number])
        if not self.verbatim:
            self._refuse_equal_numbers(classes)
        position = {name: target for target, name in enumerate(classes)}
        flags = np.zeros((len(names), len(classes)), np.uint8)
        for number in used:
            flags[number, [position[name] for name in sets[number]]] = 1
        return classes, flags[codes]

    def _refuse_equal_numbers(self, names: list[str]) -> None:
        spelled: dict[float, str] = {}
        for name in names:
            number = number_of(name)
            if number is not None and spelled.setdefault(number, name) != name:
                rows = [self.first_row[self.names[one]] for one in (spelled[number], name) if one in self.names]
                raise UserError(
                    f"{self.where}: column {self.column!r} must write each class in one way. {spelled[number]!r} and {name!r} "
                    f"are the same number{f', in rows {rows[0]} and {rows[1]}' if len(rows) == 2 else ''}. Spell it in one way."
                )


def taken(table: npt.NDArray[Any], codes: npt.NDArray[np.signedinteger[Any]]) -> npt.NDArray[Any]:
    """Return ``table[codes]``, computed in parts, because NumPy would convert all codes to 8 bytes at once."""
    result = np.empty(len(codes), table.dtype)
    for start in range(0, len(codes), _PART):
        result[start : start + _PART] = table[codes[start : start + _PART]]
    return result


def _labels_of(text: str, separator: str) -> list[str]:
    return text.split() if separator.isspace() else text.split(separator)


def hidden_labels(hidden: npt.NDArray[np.bool_], splits: npt.NDArray[np.int8]) -> tuple[DataProblem, ...]:
    """Return a warning that the rows of a hidden test split are left out; nothing if there are none."""
    if not hidden.any():
        return ()
    names = ", ".join(SPLITS[split] for split in np.unique(splits[hidden]))
    return (
        DataProblem(
            kind="hidden labels",
            severity="warning",
            text=f"without labels (empty or -1), so left out: all {int(hidden.sum()):,} rows of {names}",
            remedy="finetune predict takes images without labels.",
        ),
    )


def number_of(text: str) -> float | None:
    """Return the number that a label spells, or None."""
    if not text or text[-1] not in "0123456789.":
        return None
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def reordered(
    classes: list[str], targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8], numbers: Mapping[str, int]
) -> tuple[list[str], npt.NDArray[np.int64] | npt.NDArray[np.uint8]]:
    """Return classes and targets in the order of the given class numbers, which a run wrote into the table."""
    order = sorted(range(len(classes)), key=lambda target: numbers.get(classes[target], target))
    if targets.ndim == 2:
        several: npt.NDArray[np.uint8] = targets[:, order].astype(np.uint8)
        return [classes[target] for target in order], several
    place = np.argsort(np.array(order, np.int64)).astype(np.int64)
    single: npt.NDArray[np.int64] = place[targets]
    return [classes[target] for target in order], single
