"""Data frames of pandas or polars as manifests: written once as a table, so that a run can be resumed and tested from it."""

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

from finetune.atomic_files import make_folder, write_text
from finetune.cache_dir import cache_folder
from finetune.errors import UserError

# how pandas writes a value that is missing
_MISSING = ("nan", "NaN", "<NA>", "NaT", "None")


def is_frame(data: Any) -> bool:
    """Tell whether an object is a data frame: it has columns, by name."""
    return hasattr(data, "columns") and hasattr(data, "__getitem__")


def write_frame(frame: Any) -> Path:
    """Write a data frame as a table in the user's cache, under the hash of its contents, and return its path.

    Raises:
        UserError: The cache is turned off.
    """
    names = [str(name) for name in frame.columns]
    columns = [[_cell(value) for value in list(frame[name])] for name in frame.columns]
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


def _cell(value: Any) -> str:
    return "" if value is None or (not isinstance(value, str) and str(value) in _MISSING) else str(value)
