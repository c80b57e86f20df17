"""Look up the rows of an earlier file of embeddings by content and by path."""

import hashlib
from functools import cached_property

import numpy as np
import numpy.typing as npt

from finetune.embeddings.embeddings import Embeddings
from finetune.embeddings.files import Features

MISSING = -1


class EmbeddingLookup:
    """Rows of an earlier file, about 50 bytes of memory per row besides its mapped features.

    Args:
        earlier: Earlier embeddings.
    """

    def __init__(self, earlier: Embeddings) -> None:
        self.features: Features = earlier.features
        self._by_content = np.argsort(earlier.content[:, 0], kind="stable")
        self._contents = earlier.content[self._by_content]
        self._earlier = earlier
        self._seen = np.zeros(len(earlier), np.bool_)

    def __len__(self) -> int:
        return len(self._contents)

    def row_of_content(self, content: bytes) -> int:
        """Return a row with this content, or -1."""
        first, second = np.frombuffer(content, np.uint64)
        at = int(np.searchsorted(self._contents[:, 0], first))
        # in theory two contents may share their first half
        while at < len(self._contents) and self._contents[at, 0] == first:
            if self._contents[at, 1] == second:
                return int(self._by_content[at])
            at += 1
        return MISSING

    def holds(self, content: bytes) -> bool:
        """Tell whether a row has this content."""
        return self.row_of_content(content) != MISSING

    @cached_property
    def _by_path(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """Keys of the paths, ascending, and the row of each."""
        paths = self._earlier.paths
        keys = np.fromiter((_path_key(paths[row]) for row in range(len(paths))), np.uint64, len(paths))
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def row_of_path(self, path: str) -> int:
        """Return a row with this path, or -1."""
        keys, rows = self._by_path
        key = np.uint64(_path_key(path))
        at = int(np.searchsorted(keys, key))
        return int(rows[at]) if at < len(keys) and keys[at] == key else MISSING

    def note_path(self, path: str) -> bool:
        """Mark a path as still present; return whether the earlier file had it."""
        row = self.row_of_path(path)
        if row != MISSING:
            self._seen[row] = True
        return row != MISSING

    def note_row(self, row: int) -> None:
        """Mark a row as used, whatever its path is now."""
        self._seen[row] = True

    @property
    def gone(self) -> int:
        """Number of rows that were not marked."""
        return int((~self._seen).sum())


def _path_key(path: str) -> int:
    digest = hashlib.blake2b(path.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
