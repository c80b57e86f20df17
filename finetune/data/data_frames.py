"""Data frames of pandas or polars as manifests: written once as a table, so that a run can be resumed and tested from it."""

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.atomic_files import make_folder, write_text
from finetune.cache_dir import cache_folder
from finetune.data.label_cells import text_of
from finetune.errors import UserError, shortened

# columns that a table is read by where no setting names others
_USED = ("path", "label", "split", "class_index")
# how pandas writes a value that is missing
_MISSING = ("nan", "NaN", "<NA>", "NaT", "None")


def is_frame(data: Any) -> bool:
    """Tell whether an object is a data frame: it has columns, by name."""
    return hasattr(data, "columns") and hasattr(data, "__getitem__")


def write_frame(frame: Any, *, settings: Sequence[str] = ()) -> Path:
    """Write a data frame as a table in the user's cache, under the hash of its contents, and return its path.

    Args:
        frame: The data frame.
        settings: Words such as ``data.label_column=kind``; what they name must be texts or numbers, as in a table.

    Raises:
        UserError: Two columns have one name, a cell is neither text nor number, or the cache is turned off.
    """
    names = [str(name) for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"data: column names must be unique. There are several {shortened(twice)}. Rename them.")
    given = [part for word in settings for part in word.partition("=")[2].strip("[]").split(",")]
    columns = []
    for column in frame.columns:
        name = str(column)
        used = name in _USED or name in given
        columns.append(
            [_cell(value, name, row if used else None) for row, value in enumerate(list(frame[column]), start=1)]
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    folder = cache_folder("frames")
    if folder is None:
        raise UserError(
            "data: a data frame is kept in the cache, which FINETUNE_CACHE=off turns off. Save it as a CSV file."
        )
    path = folder / f"{hashlib.sha256(text.getvalue().encode()).hexdigest()[:32]}.csv"
    if not path.exists():
        make_folder(folder)
        write_text(path, text.getvalue())
    return path


def _cell(value: Any, column: str, row: int | None) -> str:
    """Return a cell as text; in a column that is used, whose rows have numbers, only texts and numbers are allowed."""
    if value is None or (not isinstance(value, str) and str(value) in _MISSING):
        return ""
    if row is not None:
        return text_of(value, row, column, "data")
    return str(value).encode(errors="replace").decode()
