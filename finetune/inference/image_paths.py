"""Image paths from files, folders, patterns and lists, yielded one at a time in a stable order."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.data.column_names import PATH_COLUMNS
from finetune.data.folder_walk import SUFFIXES, Links, in_words, is_image_name, kind_of_file, read_folder
from finetune.data.index import natural_order
from finetune.data.table_file import open_rows
from finetune.errors import UserError, shortened
from finetune.file_errors import in_words as error_in_words
from finetune.near_paths import did_you_mean_path
from finetune.safe_files import lines

STDIN = "-"
MANIFESTS = (".csv", ".tsv", ".txt", ".parquet")


def find_images(paths: Sequence[str | Path]) -> Iterator[str]:
    """Yield the image files at the given paths, keeping at most one folder's names in memory.

    A file is yielded whatever its suffix. A folder yields all images below it, in natural order. A path that contains ``*``,
    ``?`` or ``[`` and is not a file is a pattern (``**`` matches any folders). A ``.csv``, ``.tsv`` or ``.parquet`` file has a
    column ``path``, a ``.txt`` file one path per line; relative paths start at the list's folder, and each row is yielded as a
    :class:`ListedPath`, also one without a path. ``-`` reads a list from standard input.

    Raises:
        UserError: A path does not exist, or yields no image.
    """
    for given in paths:
        text = str(given)
        path = Path(text).expanduser()
        if text == STDIN:
            yield from _lines_of_stdin()
        elif path.is_dir():
            yield from _below(path, text)
        elif path.suffix.lower() in MANIFESTS and path.exists():
            yield from _listed(path)
        elif path.exists():
            yield str(path)
        elif glob.has_magic(text):
            yield from _matching(str(path), text)
        else:
            raise UserError(f"IMAGES='{given}': no such file or folder.{did_you_mean_path(given)}")


def _lines_of_stdin() -> Iterator[str]:
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


def _below(folder: Path, given: str) -> Iterator[str]:
    """Yield the images below a folder; the same folders are entered, and the same files are images, as in training."""
    found, others = False, Counter[str]()
    waiting, links = [str(folder)], Links(str(folder))
    while waiting:
        place = waiting.pop()
        try:
            contents = read_folder(place)
        except OSError as error:
            raise UserError(error_in_words(error, place, "cannot be listed")) from None
        others.update(kind_of_file(name) for name in contents.others)
        for name in natural_order(contents.images):
            found = True
            yield os.path.join(place, name)
        below = [os.path.join(place, name) for name in reversed(natural_order(contents.folders))]
        waiting += [path for path in below if links.leads_on(path)]
    if not found:
        patterns = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        there = f" It holds {in_words(others.items())}." if others else ""
        raise UserError(f"IMAGES='{given}': no images found. Looked for {patterns} below it.{there}")


def _matching(pattern: str, given: str) -> Iterator[str]:
    files = natural_order(f for f in glob.iglob(pattern, recursive=True) if is_image_name(os.path.basename(f)))
    if not files:
        raise UserError(f"IMAGES='{given}': no image matches this pattern.")
    yield from files


class ListedPath(str):
    """The path of an image that a list names; ``given`` is the list's own text for it.

    Args:
        path: Path that is opened, or an empty text where the list has none.
        given: What the list says.
    """

    given: str

    def __new__(cls, path: str, given: str) -> "ListedPath":
        """Return the path with what the list says."""
        listed = super().__new__(cls, path)
        listed.given = given
        return listed


def _listed(path: Path) -> Iterator[str]:
    """Yield the images of a list, relative to its folder; a row of a table without a path is an empty one."""
    names = _text_lines(path) if path.suffix.lower() == ".txt" else _table_column(path)
    for name in names:
        yield ListedPath(_opened(path.parent, name) if name.strip() else "", name)


def _opened(folder: Path, name: str) -> str:
    path = os.path.join(folder, os.path.expanduser(name))
    # blanks beside a separator are not part of a name, unless a file has them
    return (
        path
        if name == name.strip() or os.path.lexists(path)
        else os.path.join(folder, os.path.expanduser(name.strip()))
    )


def _text_lines(path: Path) -> Iterator[str]:
    for line in lines(path, name=f"IMAGES='{path}'"):
        if line and b"\0" not in line:
            yield os.fsdecode(line)


def _table_column(path: Path) -> Iterator[str]:
    """Yield the paths of a table, as training reads it; every row has one, which may be empty."""
    name = f"IMAGES='{path}'"
    with open_rows(path, name=name) as table:
        column = _column(path, table.columns)
        for number, (cell,) in enumerate(table.read([column]), start=1):
            if not (cell is None or isinstance(cell, str)):
                raise UserError(
                    f"{name}: column {table.columns[column]!r} must hold paths. It holds {cell!r} in row {number}."
                )
            yield cell or ""


def _column(path: Path, names: Sequence[str]) -> int:
    lower = [name.strip().lower() for name in names]
    for column in PATH_COLUMNS:
        if column in lower:
            return lower.index(column)
    raise UserError(
        f"IMAGES='{path}': a list needs a column {' or '.join(PATH_COLUMNS)}. "
        f"Its columns: {shortened(names) if names else 'none'}."
    )
