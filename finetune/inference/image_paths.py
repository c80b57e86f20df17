"""Image paths from files, folders, patterns and lists, yielded one at a time in a stable order."""

import csv
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.data.folder_walk import SUFFIXES, Links, in_words, is_image_name, kind_of_file, read_folder
from finetune.data.index import natural_order
from finetune.errors import UserError, shortened
from finetune.file_errors import in_words as error_in_words
from finetune.safe_files import LONGEST_PATH, check_regular, check_row_count, lines, open_table

STDIN = "-"
MANIFESTS = (".csv", ".tsv", ".txt", ".parquet")
PATH_COLUMNS = ("path", "file", "filename", "image")
_MANIFEST_BATCH = 10_000


def find_images(paths: Sequence[str | Path]) -> Iterator[str]:
    """Yield the image files at the given paths, keeping at most one folder's names in memory.

    A file is yielded whatever its suffix. A folder yields all images below it, in natural order. A path that contains ``*``,
    ``?`` or ``[`` and is not a file is a pattern (``**`` matches any folders). A ``.csv``, ``.tsv`` or ``.parquet`` file has a
    column ``path``, a ``.txt`` file one path per line; relative paths start at the list's folder. ``-`` reads a list from
    standard input.

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
            raise UserError(f"IMAGES='{given}': no such file or folder.")


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


def _listed(path: Path) -> Iterator[str]:
    """Yield the images of a list, relative to its folder."""
    readers = {".txt": _text_lines, ".parquet": _parquet_column}
    for name in readers.get(path.suffix.lower(), _csv_column)(path):
        yield os.path.join(path.parent, os.path.expanduser(name))


def _text_lines(path: Path) -> Iterator[str]:
    for line in lines(path, name=f"IMAGES='{path}'"):
        if line and b"\0" not in line:
            yield os.fsdecode(line)


def _csv_column(path: Path) -> Iterator[str]:
    with open_table(path, name=f"IMAGES='{path}'") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            column = _column(path, next(reader, []))
            for row in reader:
                if len(row) > column and row[column]:
                    yield row[column]
        except csv.Error as error:
            raise UserError(f"IMAGES='{path}': is not a readable table. Line {reader.line_num}: {error}.") from None


def _parquet_column(path: Path) -> Iterator[str]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"IMAGES='{path}': Parquet needs pyarrow. pip install 'stagewise-finetune[parquet]'") from None
    check_regular(path, name=f"IMAGES='{path}'")
    try:
        with pq.ParquetFile(path) as file:
            check_row_count(file.metadata.num_rows, path, name=f"IMAGES='{path}'")
            names = file.schema_arrow.names
            column = names[_column(path, names)]
            for batch in file.iter_batches(batch_size=_MANIFEST_BATCH, columns=[column]):
                cells = batch.column(0).to_pylist()
                if odd := next((cell for cell in cells if not isinstance(cell, str | None)), None):
                    raise UserError(f"IMAGES='{path}': column {column!r} must hold paths. It holds {odd!r}.")
                if any(len(cell) > LONGEST_PATH for cell in cells if cell):
                    raise UserError(
                        f"IMAGES='{path}': column {column!r} must hold paths. A cell has more than {LONGEST_PATH:,} characters."
                    )
                yield from (name for name in cells if name)
    except UserError:
        raise
    except (ValueError, OSError, TypeError) as error:  # the errors that pyarrow raises
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"IMAGES='{path}': is not a readable Parquet file. {why}") from None


def _column(path: Path, names: Sequence[str]) -> int:
    lower = [name.strip().lower() for name in names]
    for wanted in PATH_COLUMNS:
        if wanted in lower:
            return lower.index(wanted)
    raise UserError(
        f"IMAGES='{path}': a list needs a column {' or '.join(PATH_COLUMNS)}. "
        f"Its columns: {shortened(names) if names else 'none'}."
    )
