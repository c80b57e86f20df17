"""Image files: recognise their format by the first bytes, read them safely, and hash their contents."""

import hashlib
import os
import stat
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import UserError

# Pillow's own limit: a file of a few kilobytes can claim to hold this many pixels
MAX_PIXELS = 178_956_970
# bytes at the start of a file that suffice to recognise its format
HEAD_BYTES = 160

# suffixes of files that are read as images, and the format that each promises; the audit reports files of another format
FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    ".webp": "WebP",
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff", ".btf", ".tf8"), "TIFF"),
    ".gif": "GIF",
    ".avif": "AVIF",
    **dict.fromkeys((".heic", ".heif"), "HEIF"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
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
    (b"\x93NUMPY", "NPY"),
)

# `what_instead` adds how to convert them
_OTHER_IMAGES = (
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "an icon file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    *(
        (b"P%d" % number + space, "a PPM, PGM or PBM image")
        for number in range(1, 7)
        for space in (b"\n", b" ", b"\r", b"\t")
    ),
    (b"P7\n", "a PAM image"),
    (b"PF\n", "a PFM image"),
    (b"Pf\n", "a PFM image"),
    (b"qoif", "a QOI image"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"DDS ", "a DDS image"),
    (b"gimp xcf", "a GIMP document"),
    (b"SIMPLE  =", "a FITS image"),
    (b"<svg", "an SVG drawing"),
)

_FOREIGN = (
    (b"%PDF", "a PDF document"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"{", "a JSON document"),
)
_LFS_POINTER = b"version https://git-lfs"

# brands of ISO base media files (ISO/IEC 14496-12)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_VIDEO_BRANDS = (b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V ", b"avc1", b"3gp4", b"3gp5")
_DICOM_AT = 128


class UnreadableImage(UserError):  # noqa: N818 (named after the image, as the message is)
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
    """Return the image format that the first ``HEAD_BYTES`` bytes announce, or None.

    >>> sniff(b"GIF89a" + bytes(10))
    'GIF'
    """
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp" and bytes(head[8:12]) in _BRANDS:
        # a general brand is followed by the brands that the file is compatible with
        compatible = bytes(head[16 : int.from_bytes(head[:4], "big")])
        return "AVIF" if b"avif" in compatible else _BRANDS[bytes(head[8:12])]
    return "DICOM" if head[_DICOM_AT : _DICOM_AT + 4] == b"DICM" else None


def what_instead(head: bytes | bytearray) -> str:
    """Describe a file that is not an image in a supported format, as a sentence for the user.

    >>> what_instead(b"<!DOCTYPE html><html>")
    'It is a web page, not an image.'
    """
    start = bytes(head[:64]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_LFS_POINTER):
        return "It is a Git LFS pointer in place of the file. Fetch the files with: git lfs pull."
    if not any(head):
        return "It holds nothing but zero bytes, as after an interrupted download or copy."
    for magic, words in _OTHER_IMAGES:
        if head.startswith(magic) or start.startswith(magic.lower()):
            return f"It is {words}, which is not supported. {CONVERT}"
    if (head[4:8] == b"ftyp" and bytes(head[8:12]) in _VIDEO_BRANDS) or head[8:12] == b"AVI ":
        return "It is a video, not an image. Extract its frames, for example with: ffmpeg -i FILE frames/%05d.png."
    for magic, words in _FOREIGN:
        if head.startswith(magic) or start.startswith(magic.lower()):
            return f"It is {words}, not an image."
    if _is_targa(head):
        return f"It is a TGA image, which is not supported. {CONVERT}"
    return f"Its first bytes ({bytes(head[:8]).hex(' ')}) do not belong to any known image format."


CONVERT = "Convert it to PNG or JPEG, for example with ImageMagick (magick FILE FILE.png)."


def _is_targa(head: bytes | bytearray) -> bool:
    """Tell whether the bytes fit the header of a TGA file, which has no signature."""
    if len(head) < 18 or head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11):
        return False
    sizes_set = any(head[12:14]) and any(head[14:16])
    mapped = head[1] == 1 and head[7] in (15, 16, 24, 32)
    return sizes_set and head[16] in (8, 15, 16, 24, 32) and head[17] & 0xC0 == 0 and (mapped or not any(head[3:8]))


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
        # O_NONBLOCK: since the check the file may have become a pipe, which would wait for its other end
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
    except UnreadableImage:  # also a ValueError, which is caught below
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

    The hash keys the splits, detects duplicates and is part of the data fingerprint.

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
            f"under data.max_pixels={max_pixels}. Raise the limit if the file is meant to be that large.",
        )
