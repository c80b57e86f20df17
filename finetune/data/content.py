"""What a file holds, as 128 bits: the key of splits, the test for duplicates, and part of the data's fingerprint."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from finetune.data.path_table import PathTable

_CHUNK = 1 << 20


def content_of_bytes(data: bytes | memoryview) -> npt.NDArray[np.uint64]:
    """The content key of bytes in memory, uint64 (2,)."""
    return np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), np.uint64)


def hash_file(path: str) -> bytes:
    """The content key of one file, 16 bytes; read in chunks, so that its size does not matter.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()


def hash_paths(root: str, paths: PathTable) -> tuple[npt.NDArray[np.uint64], list[tuple[int, str]]]:
    """Content keys of many files, hashed in parallel (both reading and hashing release the interpreter's lock).

    Returns:
        uint64 (N, 2), and the rows that could not be read with the reason; their keys come from the path.
    """
    failed: list[tuple[int, str]] = []
    keys = np.zeros((len(paths), 2), np.uint64)
    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(paths), 4096):
            rows = range(start, min(start + 4096, len(paths)))
            for row, result in zip(rows, pool.map(partial(_hash_or_reason, root, paths), rows), strict=True):
                if isinstance(result, str):
                    failed.append((row, result))
                    result = hashlib.blake2b(os.fsencode(paths[row]), digest_size=16, person=b"unread").digest()
                keys[row] = np.frombuffer(result, np.uint64)
    return keys, failed


def _hash_or_reason(root: str, paths: PathTable, row: int) -> bytes | str:
    try:
        return hash_file(os.path.join(root, paths[row]))
    except OSError as error:
        return error.strerror or str(error)


def content_of_arrays(arrays: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint64]:
    """Content keys of images in memory, uint64 (N, 2)."""
    return np.stack([content_of_bytes(np.ascontiguousarray(array).data) for array in arrays])
