"""What a file holds, as 128 bits: the key of splits, the test for duplicates, and part of the data's fingerprint."""

import hashlib

import numpy as np
import numpy.typing as npt


def content_of_bytes(data: bytes | bytearray) -> npt.NDArray[np.uint64]:
    """The content key of bytes in memory, uint64 (2,): BLAKE2b, so that equal keys mean equal bytes.

    >>> bool((content_of_bytes(b"a") == content_of_bytes(bytearray(b"a"))).all())
    True
    """
    return np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), np.uint64)
