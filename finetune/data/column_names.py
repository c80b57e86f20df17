"""Names that the columns of a table usually have."""

from collections.abc import Sequence

# columns of image files
PATH_COLUMNS = ("path", "file", "filename", "image", "image_path", "file_path", "file_name", "filepath")
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "classes",
    "category",
    "target",
    "tag",
    "tags",
    "diagnosis",
    "species",
    "y",
)
# setting of a column -> the names
_USUAL = {"path_column": PATH_COLUMNS, "label_column": LABEL_COLUMNS}


def likely_column(setting: str, columns: Sequence[str]) -> str | None:
    """Return the column that a setting most likely means, by its name, or None.

    Args:
        setting: ``path_column`` or ``label_column``; others have no usual names.
        columns: Columns of the table.

    >>> likely_column("path_column", ["Tags", "File"]), likely_column("label_column", ["Tags", "File"])
    ('File', 'Tags')
    >>> likely_column("label_column", ["a", "b"])
    """
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    return next((by_name[name] for name in _USUAL.get(setting, ()) if name in by_name), None)
