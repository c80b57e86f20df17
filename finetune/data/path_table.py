"""A list of file paths as three flat arrays: a million paths take tens of megabytes and no Python objects.

Forked worker processes share the arrays, because reading a path touches no reference count of a million strings.

numpy's ``StringDType`` does not serve here: it holds valid Unicode alone, and a file name may be bytes that are not UTF-8
(``os.fsdecode`` gives surrogates for them, which it refuses). It would also repeat the folder in every row.
"""

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class PathTable:
    """Paths as (folder, name) pairs: few folders, and all names in one byte buffer.

    Args:
        folders: Folders of all rows, in any order; ``os.sep`` separates their parts, and they may be empty.
        folder_ids: Position in ``folders`` of each row, int32 (N,).
        names: Names of all rows one after the other, as ``os.fsencode`` gives them, uint8.
        ends: Position in ``names`` where each name ends, uint32 or int64 (N,).
    """

    def __init__(
        self,
        *,
        folders: Sequence[str],
        folder_ids: npt.NDArray[np.int32],
        names: npt.NDArray[np.uint8],
        ends: npt.NDArray[np.integer[Any]],
    ) -> None:
        assert len(folder_ids) == len(ends), "one folder and one name per row"
        self.folders = tuple(folders)
        self.folder_ids = folder_ids
        self.names = names
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        """Return the path of one row; negative rows count from the end.

        Raises:
            IndexError: There is no such row.
        """
        row = range(len(self))[row]
        start = int(self.ends[row - 1]) if row else 0
        name = os.fsdecode(self.names[start : int(self.ends[row])].tobytes())
        return os.path.join(self.folders[self.folder_ids[row]], name)

    def take(self, rows: npt.NDArray[np.int64]) -> "PathTable":
        """Return the table of some rows, in their order."""
        ends = self.ends.astype(np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[rows] if len(self) else ends[rows]
        lengths = ends[rows] - starts
        ends = np.cumsum(lengths, dtype=np.int64)
        # source position of every kept byte: its position in the new buffer plus the shift of its name
        source = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
        return PathTable(
            folders=self.folders, folder_ids=self.folder_ids[rows], names=self.names[source], ends=_narrow(ends)
        )

    @property
    def nbytes(self) -> int:
        """Return the bytes held by the arrays; the folder names come on top."""
        return int(self.folder_ids.nbytes + self.names.nbytes + self.ends.nbytes)


def _narrow(ends: npt.NDArray[np.int64]) -> npt.NDArray[np.integer[Any]]:
    """Store each end in four bytes instead of eight while the names take less than four gigabytes."""
    return ends.astype(np.uint32) if not len(ends) or ends[-1] < 2**32 else ends


def _ends(lengths: npt.NDArray[np.unsignedinteger[Any]], total: int) -> npt.NDArray[np.integer[Any]]:
    """Return where each name ends, from the lengths."""
    ends: npt.NDArray[np.integer[Any]] = np.cumsum(lengths, dtype=np.uint32 if total < 2**32 else np.int64)
    return ends


class PathTableBuilder:
    """A builder that takes one folder at a time, so that only its names exist as Python strings at any moment."""

    def __init__(self) -> None:
        self._folders: list[str] = []
        self._counts: list[int] = []
        self._buffer = bytearray()
        self._lengths: list[npt.NDArray[np.uint16]] = []

    def add_folder(self, folder: str, names: Sequence[str]) -> None:
        """Append the rows ``folder/name`` for each name, in the order given; more names of the last folder may follow.

        >>> builder = PathTableBuilder()
        >>> builder.add_folder("cat", ["1.jpg", "10.jpg"])
        >>> builder.add_folder("dog", ["2.jpg"])
        >>> list(builder.build())
        ['cat/1.jpg', 'cat/10.jpg', 'dog/2.jpg']
        """
        if not names:
            return
        # a file name never contains NUL, so joining by it is exact, and numpy finds all ends at once
        block = np.frombuffer(os.fsencode("\0".join(names)) + b"\0", np.uint8)
        separators = np.flatnonzero(block == 0)
        self._lengths.append((np.diff(separators, prepend=-1) - 1).astype(np.uint16))
        self._buffer += block[block != 0].data
        if self._folders and self._folders[-1] == folder:
            self._counts[-1] += len(names)
            return
        self._folders.append(folder)
        self._counts.append(len(names))

    def build(self) -> PathTable:
        """Build the table of all rows added; it takes over the builder's buffer, so call this last."""
        folder_ids = np.repeat(np.arange(len(self._folders), dtype=np.int32), self._counts)
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.uint16)
        total = len(self._buffer)
        names = np.frombuffer(self._buffer, np.uint8)
        return PathTable(folders=self._folders, folder_ids=folder_ids, names=names, ends=_ends(lengths, total))


class PathAppender:
    """A builder that takes one path at a time, in any order, as a manifest lists them."""

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}
        self._folder_ids = array("i")
        self._lengths = array("I")
        self._buffer = bytearray()

    def append(self, path: str) -> None:
        """Append a row."""
        folder, name = os.path.split(path)
        self._folder_ids.append(self._folders.setdefault(folder, len(self._folders)))
        encoded = os.fsencode(name)
        self._buffer += encoded
        self._lengths.append(len(encoded))

    def build(self) -> PathTable:
        """Build the table of all rows; it takes over the builder's buffers, so call this last."""
        return PathTable(
            folders=list(self._folders),
            folder_ids=np.frombuffer(self._folder_ids, np.int32),
            names=np.frombuffer(self._buffer, np.uint8),
            ends=_ends(np.frombuffer(self._lengths, np.uint32), len(self._buffer)),
        )


def path_table(paths: Iterable[str]) -> PathTable:
    """Build a table of paths in any order."""
    table = PathAppender()
    for path in paths:
        table.append(path)
    return table.build()


def concatenate(parts: Sequence[tuple[str, PathTable]]) -> PathTable:
    """Concatenate tables, each below a folder.

    >>> list(concatenate([("a", path_table(["x/1.jpg"])), ("b", path_table(["1.jpg"]))]))
    ['a/x/1.jpg', 'b/1.jpg']
    """
    folders: list[str] = []
    folder_ids, ends, before = [], [], 0
    for prefix, table in parts:
        folder_ids.append(table.folder_ids + np.int32(len(folders)))
        ends.append(table.ends.astype(np.int64) + before)
        folders += [os.path.join(prefix, folder) if folder else prefix for folder in table.folders]
        before += len(table.names)
    return PathTable(
        folders=folders,
        folder_ids=np.concatenate(folder_ids),
        names=np.concatenate([table.names for _, table in parts]),
        ends=_narrow(np.concatenate(ends)),
    )
