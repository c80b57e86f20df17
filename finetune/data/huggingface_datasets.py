"""Reads data sets of the Hugging Face ``datasets`` library from disk, where that library is installed.

A data set is a folder written by ``save_to_disk``, or one that ``load_dataset`` understands. Images are read as file
bytes and decoded by this package, so that all its rules for unusual images apply.
"""

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.assign_splits import arrange, leave_out_unreadable
from finetune.data.decode import DecodeOptions, decode_bytes, to_tensor
from finetune.data.depth_range import with_ranges
from finetune.data.groups import Groups, groups_of_cells
from finetune.data.huggingface_folder import check_folder
from finetune.data.image_file import MAX_PIXELS, UnreadableImage, read_image_file
from finetune.data.index import SPLITS, Index
from finetune.data.label_cells import LabelColumn, hidden_labels, is_missing
from finetune.data.listing import UNASSIGNED, Listing, Use, check_classes, without_rows
from finetune.data.path_table import PathTable, PathTableBuilder
from finetune.data.scan import Facts, facts_of_bytes, scan_by
from finetune.data.scan_cache import STAMP_TYPE, cached_facts_by, file_stamp
from finetune.data.split_names import split_names
from finetune.errors import UserError, did_you_mean, first_line
from finetune.split_settings import SplitSettings


class TableSource:
    """A source of samples in the rows of Arrow tables, one table per split.

    Args:
        index: The table of samples.
        tables: Arrow data sets of the image column alone, undecoded: a row's other columns would be decoded with it.
        image_column: Name of the image column.
        places: Table and table row of each row of the index, int64 (N, 2).
        decode_options: How the images become pixels.
        facts: Scan facts of each row; None where they are not known.
    """

    in_memory = False
    many_threads = True

    def __init__(
        self,
        *,
        index: Index,
        tables: list[Any],
        image_column: str,
        places: npt.NDArray[np.int64],
        decode_options: DecodeOptions,
        facts: Facts | None,
    ) -> None:
        self.index = index
        self.tables = tables
        self.image_column = image_column
        self.places = places
        self.decode_options = decode_options
        self.facts = facts
        self._one_at_a_time = threading.Lock()

    def read(self, row: int, *, min_side: int | None = None) -> torch.Tensor:
        """Decode the bytes of one row."""
        table, place = self.places[row].tolist()
        # the library does not promise that several threads may read a table; copying the bytes holds Python's lock anyway
        with self._one_at_a_time:
            cell = self.tables[table][place][self.image_column]
        data = image_bytes(cell, max_pixels=self.decode_options.max_pixels)
        return to_tensor(decode_bytes(data, self.decode_options, path=self.index.path(row), min_side=min_side))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the facts, which no worker process needs, and the lock, which belongs to this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_one_at_a_time"} | {"facts": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a lock of this process's own."""
        self.__dict__ |= state
        self._one_at_a_time = threading.Lock()


def huggingface_source(
    *,
    path: str,
    image_column: str = "image",
    label_column: str = "label",
    group_column: str | None = None,
    split: SplitSettings = SplitSettings(),
    decode_options: DecodeOptions = DecodeOptions(),
    on_unreadable: str = "error",
    use: Use = "train",
) -> TableSource:
    """Build a source from a data set on disk; its own splits are kept, the missing ones made from train.

    Args:
        path: Folder written by ``save_to_disk``, or one that ``load_dataset`` reads.
        image_column: Column of the images.
        label_column: Column of the class labels or strings.
        group_column: Column of the groups, which generated splits never divide. None for no groups.
        split: Rule for the splits that the data set lacks.
        decode_options: How the images become pixels.
        on_unreadable: Treatment of unreadable images, ``error`` or ``skip``.
        use: What the data set is for.

    Raises:
        UserError: The library is missing, or the folder, a column or an image cannot be read.
    """
    parts = _open(path, image_column, label_column, group_column, use=use)
    lengths = [len(table) for table in parts.values()]
    given = tuple(parts) if len(parts) > 1 or "train" not in parts else ()
    splits = np.repeat(
        np.array([SPLITS.index(name) if given else UNASSIGNED for name in parts], np.int8), lengths
    ).astype(np.int8)
    classes, targets, hidden = _targets(parts, label_column, splits, where=f"data.path={path!r}")
    shown = np.flatnonzero(~hidden)
    places = np.stack(
        [np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(length) for length in lengths])], axis=1
    )[shown]
    listing = Listing(
        origin=f"data.path={path!r}",
        root="",
        classes=tuple(classes),
        paths=_numbered(parts, lengths),
        targets=targets,
        splits=splits,
        given=tuple(name for name in given if (splits[shown] == SPLITS.index(name)).any()),
        groups=None if group_column is None else _groups(parts, group_column),
        problems=hidden_labels(hidden, splits),
        use=use,
    )
    listing = check_classes(without_rows(listing, np.flatnonzero(hidden)) if hidden.any() else listing)
    tables = [table.select_columns([image_column]) for table in parts.values()]
    cells = _Cells(tables, places, image_column)
    facts = cells.facts(os.path.abspath(path), max_pixels=decode_options.max_pixels)
    readable, skipped = leave_out_unreadable(listing, facts.unreadable(), on_unreadable=on_unreadable)
    kept = np.flatnonzero(facts.table["problem"] == 0)
    index, rows = arrange(readable, content=facts.content[kept], split=split, skipped=skipped)
    if use != "test":
        # measured on training data; test data is read with the ranges of the run
        decode_options, notes = with_ranges(decode_options, facts)
        index.notes += notes
    return TableSource(
        index=index,
        tables=tables,
        image_column=image_column,
        places=places[kept][rows],
        decode_options=decode_options,
        facts=facts.take(kept[rows]),
    )


def image_bytes(cell: dict[str, Any] | None, *, max_pixels: int = MAX_PIXELS) -> bytearray:
    """Return the bytes of an undecoded image cell, which holds them or names a file.

    Raises:
        UnreadableImage: The cell is empty, or :func:`finetune.data.image_file.read_image_file` refuses the file.
    """
    if cell is not None and cell.get("bytes") is not None:
        return bytearray(cell["bytes"])
    if cell is None or cell.get("path") is None:
        raise UnreadableImage("", "The image is missing.")
    return read_image_file(cell["path"], max_pixels=max_pixels)


def _open(
    path: str, image_column: str, label_column: str, group_column: str | None = None, *, use: Use = "train"
) -> dict[str, Any]:
    """Open the data set; return its tables by our split names, train first, images undecoded."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(
            "data.source='huggingface': needs the library datasets. Install it: pip install datasets."
        ) from None
    full = os.path.abspath(path)
    if not os.path.isdir(full):
        raise UserError(f"data.path={path!r}: no such folder. Looked for {full}.")
    check_folder(Path(full))
    saved = any(os.path.isfile(os.path.join(full, name)) for name in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(full) if saved else datasets.load_dataset(full)
    except Exception as error:  # the library raises many types for folders that it cannot read
        raise UserError(f"data.path={path!r}: cannot be read as a data set. {first_line(error)}") from None
    by_name = loaded if isinstance(loaded, dict) else {"train": loaded}
    names = split_names(by_name) if isinstance(loaded, dict) else {"train": "train"}
    several = len(set(names.values())) < len(names)
    if len(names) < len(by_name) or several or (use == "train" and "train" not in names.values()):
        raise UserError(
            f"data.path={path!r}: must have a split train, and may have validation and test. Found {list(by_name)}."
        )
    parts = {}
    for name in sorted(by_name, key=lambda name: SPLITS.index(names[name])):
        table = by_name[name]
        for setting, column in (
            ("image_column", image_column),
            ("label_column", label_column),
            ("group_column", group_column),
        ):
            if column is not None and column not in table.column_names:
                raise UserError(
                    f"data.{setting}={column!r}: not a column of {path!r}. Columns: {', '.join(table.column_names)}."
                    f"{did_you_mean(column, table.column_names)}"
                )
        # a saved data set keeps the format of its rows, which may lack columns
        plain = table.with_format(None)
        parts[names[name]] = plain.cast_column(image_column, datasets.Image(decode=False))
    return parts


def _numbered(parts: dict[str, Any], lengths: list[int]) -> PathTable:
    """Return the names of all rows: the split and the row in it."""
    names = PathTableBuilder()
    for split, length in zip(parts, lengths, strict=True):
        for start in range(0, length, _ROWS_AT_ONCE):
            names.add_folder(split, [str(row) for row in range(start, min(start + _ROWS_AT_ONCE, length))])
    return names.build()


def _distinct(table: Any, column: str) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """Return the distinct cells of a column in the order of their first rows, and the position of each row's cell among them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = table.with_format("arrow")[column]
    try:
        encoded = pc.dictionary_encode(cells, null_encoding="encode").combine_chunks()
    except pa.ArrowNotImplementedError:  # lists and structures
        return cells.to_pylist(), np.arange(len(cells))
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _groups(parts: dict[str, Any], column: str) -> Groups:
    """Return the groups of all rows; a missing cell makes none."""
    cells: list[Any] = []
    positions = []
    for table in parts.values():
        own, of_rows = _distinct(table, column)
        positions.append(of_rows + len(cells))
        cells += ["" if is_missing(cell) else cell for cell in own]
    return groups_of_cells(cells, setting=f"data.group_column={column!r}").take(np.concatenate(positions))


# rows that are named together
_ROWS_AT_ONCE = 2**16
# what to do about a column of lists
_SEVERAL = (
    "data=huggingface reads one label per image. For several, save the images as files, and list them in a table that "
    "data=manifest reads with data.label_separator."
)


def _targets(
    parts: dict[str, Any], column: str, splits: npt.NDArray[np.int8], *, where: str
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the classes, the target of each row, and which rows are those of a hidden test split.

    Raises:
        UserError: Labels are missing or no texts or numbers, or a split has other classes than the first.
    """
    labels = LabelColumn(column=column, where=where, separator=None, verbatim=False, advice=_SEVERAL)
    first, *others = parts
    names = getattr(parts[first].features[column], "names", None)
    for split in others:
        _must_hold_alike(
            parts[split].features[column], parts[first].features[column], f"{where}: column {column!r}", split, first
        )
    if names is not None:
        labels.names = {name: number for number, name in enumerate(names)}
    codes = []
    before = 0
    for split, table in parts.items():
        cells, positions = _distinct(table, column)
        if names is None:
            rows = np.unique(positions, return_index=True)[1] + before + 1
            of_cells = [labels.code(cell, int(row)) for cell, row in zip(cells, rows, strict=True)]
        else:
            own = table.features[column].names
            of_cells = [
                _class_code(cell, own, labels.names, f"{where}: column {column!r} of split {split}", first)
                for cell in cells
            ]
        codes.append(np.array(of_cells, np.int32)[positions])
        before += len(positions)
    numbers = np.concatenate(codes)
    hidden = labels.hidden(numbers, splits)
    if names is not None:
        return list(names), np.maximum(numbers, 0).astype(np.int64), hidden
    if hidden.all():
        raise UserError(f"{where}: no labels found. All of column {column!r} is empty.")
    numbers[hidden] = numbers[~hidden][0]
    classes, targets = labels.classes(numbers)
    return classes, targets.astype(np.int64), hidden


def _class_code(cell: int | None, names: list[str], numbers: dict[str, int], where: str, first: str) -> int:
    """Return the number that the first split gives the class in a cell of another; -1 for none: empty or negative.

    Raises:
        UserError: The number stands for no class, or the first split lacks the class.
    """
    if cell is None or cell < 0:
        return -1
    if cell >= len(names):
        raise UserError(
            f"{where} must hold the numbers of its {len(names)} classes, from 0 to {len(names) - 1}. Found {cell}. Save the data "
            "set with all its classes in datasets.ClassLabel(names=...)."
        )
    if names[cell] not in numbers:
        raise UserError(f"{where} has the class {names[cell]!r}, which {first} lacks. Give both the same classes.")
    return numbers[names[cell]]


def _must_hold_alike(feature: Any, first: Any, where: str, split: str, first_split: str) -> None:
    """Refuse class labels in one split beside plain texts or numbers in another, which may stand for other classes.

    Raises:
        UserError: One holds class labels, and the other does not.
    """
    if hasattr(feature, "names") != hasattr(first, "names"):
        kinds = [
            "class labels" if hasattr(one, "names") else getattr(one, "dtype", "lists") for one in (feature, first)
        ]
        raise UserError(
            f"{where} of split {split} holds {kinds[0]}, and that of {first_split} {kinds[1]}. Cast both to the same: "
            "datasets.ClassLabel(names=...)."
        )


class _Cells:
    """The undecoded image cells of a data set.

    Args:
        tables: Arrow data sets of the image column alone, undecoded.
        places: Table and table row of each cell, int64 (N, 2).
        column: Name of the image column.
    """

    def __init__(self, tables: list[Any], places: npt.NDArray[np.int64], column: str) -> None:
        self._tables, self._places, self._column = tables, places, column
        self._arrow = [table.with_format("arrow") for table in tables]
        self._one_at_a_time = threading.Lock()

    def facts(self, folder: str, *, max_pixels: int) -> Facts:
        """Return the facts of all images; those of unchanged Arrow files come from the scan cache."""

        def scan_rows(rows: npt.NDArray[np.int64]) -> Facts:
            def fill(table: npt.NDArray[np.void], positions: range) -> list[str]:
                cells = self._read(rows[positions.start : positions.stop])
                return [
                    _fill(table[number : number + 1], cell, max_pixels=max_pixels) for number, cell in enumerate(cells)
                ]

            return scan_by(fill, len(rows))

        if not all(table.cache_files for table in self._tables):
            # tables in memory have nothing to tell whether they changed
            return scan_rows(np.arange(len(self._places)))
        return cached_facts_by(scan_rows, self._stamps(), name=f"{max_pixels}\0{folder}\0{self._column}")

    def _read(self, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return some cells, in order."""
        found: list[dict[str, Any]] = []
        numbers, places = self._places[rows].T
        # nothing guarantees that the reader behind a table is thread-safe
        with self._one_at_a_time:
            for number in np.unique(numbers):
                found += self._arrow[number][places[numbers == number]][self._column].to_pylist()
        return found

    def _stamps(self) -> npt.NDArray[np.void]:
        """Return the stamp of each cell: that of the file that it names, or of its table's Arrow files."""
        import pyarrow.compute as pc

        stamps = np.zeros(len(self._places), STAMP_TYPE)
        # places are in the order of the tables
        stamps["path"] = self._places[:, 0] << 40 | self._places[:, 1]
        for number, table in enumerate(self._tables):
            files = [(file["filename"], *file_stamp(file["filename"])) for file in table.cache_files]
            digest = hashlib.blake2b(repr(files).encode(), digest_size=8).digest()
            of_table = np.flatnonzero(self._places[:, 0] == number)
            stamps["size"][of_table] = sum(size for _, size, *_ in files)
            stamps["changed"][of_table] = max(changed for _, _, changed, *_ in files)
            stamps["inode"][of_table] = int.from_bytes(digest, "little")
            column = self._arrow[number][self._column]
            named = np.asarray(pc.is_null(pc.struct_field(column, "bytes")))[self._places[of_table, 1]]
            if named.any():
                paths = pc.struct_field(column, "path")
                for row in of_table[named]:
                    stamp = file_stamp(paths[int(self._places[row, 1])].as_py() or "")
                    stamps[row] = (stamps["path"][row], *stamp)
        return stamps


def _fill(row: npt.NDArray[np.void], cell: dict[str, Any], *, max_pixels: int) -> str:
    """Write the facts of an image cell into a one-row view of a table; return the reason if it is unreadable, else empty."""
    try:
        facts_of_bytes(image_bytes(cell, max_pixels=max_pixels), row, path="", max_pixels=max_pixels)
    except UnreadableImage as error:
        # where a cell names a file, the user knows the image by that path
        return f"{error.path}: {error.reason}" if error.path else error.reason
    return ""
