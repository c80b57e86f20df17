"""Image files: recognises their format by the first bytes, reads them safely, and hashes their content."""

import hashlib
import os
import stat
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import UserError

# the limit at which Pillow itself refuses: a file of a few kilobytes can claim to hold this many pixels
MAX_PIXELS = 178_956_970
# length of the start of a file from which its format is recognised
HEAD_BYTES = 64

# the format that each suffix promises; the audit reports files that hold another one
FORMAT_OF_SUFFIX = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".gif": "GIF",
    ".webp": "WebP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

_FOREIGN = (
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"{", "a JSON document"),
)

_BOXES = {
    b"heic": "a HEIC",
    b"heix": "a HEIC",
    b"mif1": "a HEIC",
    b"msf1": "a HEIC",
    b"avif": "an AVIF",
    b"avis": "an AVIF",
}


class UnreadableImage(UserError):  # noqa: N818 (it names the thing, as the message does)
    """A file that cannot be read as an image.

    Args:
        path: Path of the file.
        reason: Reason, as a sentence for the user.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: cannot be read as an image. {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        # unpickling an exception from a worker process rebuilds it from its arguments, not from its message
        return type(self), (self.path, self.reason)


def sniff(head: bytes | bytearray) -> str | None:
    """Return the image format that the first 16 bytes announce, or None.

    >>> sniff(b"GIF89a" + bytes(10))
    'GIF'
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    return "WebP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def what_instead(head: bytes | bytearray) -> str:
    """Describe a file that is not an image in a supported format, as a sentence for the user.

    >>> what_instead(b"<!DOCTYPE html><html>")
    'It is a web page, not an image.'
    """
    start = bytes(head[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head[4:8] == b"ftyp" and bytes(head[8:12]) in _BOXES:
        return f"It is {_BOXES[bytes(head[8:12])]} image, which is not supported: convert it to JPEG or PNG."
    if not any(head):
        return "It holds nothing but zero bytes, as after an interrupted download or copy."
    for magic, words in _FOREIGN:
        if start.startswith(magic.lower()):
            return f"It is {words}, not an image."
    return f"Its first bytes ({bytes(head[:8]).hex(' ')}) belong to no known image format."


def largest_file(max_pixels: int = MAX_PIXELS) -> int:
    """Return the largest size of an image file: ``max_pixels`` colour pixels (512 MiB at least) and 16 MiB of metadata.

    >>> largest_file() // 2**20
    528
    """
    return 3 * max(max_pixels, MAX_PIXELS) + 2 + 2**24


def read_image_file(path: str, *, max_pixels: int = MAX_PIXELS) -> bytearray:
    """Read the bytes of a file that starts like an image.

    Pipes, devices, sockets and folders are recognised by their type and never opened. A file that does not start like
    an image is not read any further, because a sparse file may claim any size.

    Raises:
        UnreadableImage: The file is missing, empty, not a regular file, too large, not an image, or not readable.
    """
    try:
        _check(path, os.stat(path), max_pixels)
        # between the check and the opening it may have become a pipe, which would wait for its other end
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            _check(path, status, max_pixels)
            head = file.read(HEAD_BYTES)
            if sniff(head) is None:
                raise UnreadableImage(path, what_instead(head))
            data = bytearray(max(status.st_size, len(head)))
            data[: len(head)] = head
            with memoryview(data) as view:
                filled = len(head)
                while filled < len(data) and (count := file.readinto(view[filled:])):
                    filled += count
    except UnreadableImage:  # a ValueError too
        raise
    except FileNotFoundError:
        raise UnreadableImage(path, "There is no such file.") from None
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise UnreadableImage(path, f"{getattr(error, 'strerror', None) or error}.") from None
    del data[filled:]
    return data


def read_head(path: str) -> bytes:
    """Return the first bytes of a regular file, which show its format; empty if it is not one or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            return file.read(HEAD_BYTES) or b""
    except (OSError, ValueError):
        return b""


def content_hash(data: bytes | bytearray) -> npt.NDArray[np.uint64]:
    """Return the content hash of a file's bytes, uint64 (2,): BLAKE2b, so that equal hashes mean equal bytes.

    It keys the splits, detects duplicates and is part of the data fingerprint.

    >>> bool((content_hash(b"a") == content_hash(bytearray(b"a"))).all())
    True
    """
    return np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), np.uint64)


def _check(path: str, status: os.stat_result, max_pixels: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage(path, "It is not a regular file.")
    if not status.st_size:
        raise UnreadableImage(path, "The file is empty.")
    if status.st_size > largest_file(max_pixels):
        raise UnreadableImage(
            path,
            f"It has {status.st_size / 2**20:,.0f} MiB, more than the {largest_file(max_pixels) // 2**20:,} MiB of an image file "
            f"under data.max_pixels={max_pixels}. Raise the limit if the file is meant to be so large.",
        )
