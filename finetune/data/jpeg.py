"""Decodes JPEG files by libjpeg-turbo and refuses those that it had to repair.

libjpeg continues after damage: what it cannot decode becomes grey, or shifts. It counts that as a warning, which Pillow and
torchvision drop. simplejpeg raises instead. A progressive file that ends between two scans gives no warning, because every
scan is a whole picture, only coarser; its scan headers show whether the last bits of all coefficients were sent.
"""

import logging
import re
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
ColorSpace = Literal["GRAY", "RGB", "CMYK"]

_SOI, _EOI, _SOS = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
_ADOBE = 0xEE
# start of frame, Huffman and arithmetic tables, quantization tables, restart interval
_PIXEL_SEGMENTS = {*range(0xC0, 0xD0), 0xDB, 0xDD, _ADOBE} - {0xC8}
_SEGMENT = re.compile(rb"\xff+([\x01-\xfe])")
# libjpeg's messages (jerror.h) about damage in the coded pixels
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
# some cameras fill the last scan up with a few equal bytes
_MOST_FILL = 16
_COEFFICIENTS = 64


class DamagedJpegError(ValueError):
    """A JPEG file that gives pixels, but not those that were stored; the message is libjpeg's."""


class UnsupportedJpegError(ValueError):
    """A JPEG file that libjpeg-turbo cannot decode at all; the message is its own."""


def decode_jpeg(data: bytes | bytearray, color_space: ColorSpace, *, size: tuple[int, int] | None = None) -> Pixels:
    """Decode a JPEG file.

    Args:
        data: Bytes of the file.
        color_space: Form of the pixels; ``CMYK`` for files that are stored so, as stored.
        size: Smallest height and width; the file is decoded by the format's own scaling at this size or the next larger
            one. None for the full size.

    Returns:
        uint8 (H, W, channels).

    Raises:
        DamagedJpegError: The decoder had to repair the data.
        UnsupportedJpegError: The decoder cannot decode it.
    """
    try:
        return _decode(data, color_space, size, strict=True)
    except DamagedJpegError as error:
        if _is_fill(data, str(error)):
            return _decode(data, color_space, size, strict=False)
    # the first warning hides others, and may concern metadata alone
    return _decode(pixel_segments(data), color_space, size, strict=True)


def _decode(data: bytes | bytearray, color_space: ColorSpace, size: tuple[int, int] | None, *, strict: bool) -> Pixels:
    height, width = size or (0, 0)
    decoder = _simplejpeg()
    if decoder is None:
        raise UnsupportedJpegError("simplejpeg is not installed")
    try:
        pixels: Pixels = decoder.decode_jpeg(data, color_space, min_height=height, min_width=width, strict=strict)
        return pixels
    except ValueError as error:
        message = str(error)
        kind = DamagedJpegError if message.startswith(_DAMAGE) or "Warning" in message else UnsupportedJpegError
        raise kind(message) from None


@cache
def _simplejpeg() -> Any:
    """Return the library, or None where an environment was made without it; say so once."""
    try:
        import simplejpeg
    except ImportError:
        log.warning("simplejpeg is not installed: damaged JPEG files are read in silence. pip install simplejpeg")
        return None
    return simplejpeg


def _is_fill(data: bytes | bytearray, message: str) -> bool:
    """Tell whether what libjpeg skipped is a few equal bytes between the last pixel and the end marker."""
    skipped = _EXTRANEOUS.search(message)
    if skipped is None or (count := int(skipped[1])) > _MOST_FILL:
        return False
    end = data.rfind(_EOI)
    return len(set(data[max(0, end - count) : end])) == 1


def pixel_segments(data: bytes | bytearray) -> bytes:
    """Return the file without metadata, and without bytes between the segments of its header."""
    kept, position = [_SOI], len(_SOI)
    while (found := _SEGMENT.search(data, position)) is not None:
        marker, start = found[1][0], found.end() - 2
        if marker == _SOS[1]:
            return b"".join([*kept, bytes(data[start:])])
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker in _PIXEL_SEGMENTS:
            kept.append(bytes(data[start:end]))
        position = end if marker > 0xBF else found.end()
    return b"".join(kept)


def is_complete(data: bytes | bytearray, *, first_scan: int, components: int, progressive: bool) -> bool:
    """Tell whether the scans of a file hold all bits of all coefficients of all components.

    Args:
        data: Bytes of the file.
        first_scan: Position at or before the first scan's header, behind the metadata.
        components: Number of components of the frame.
        progressive: Whether the frame is progressive.
    """
    missing: dict[int, set[int]] = {}
    position = data.find(_SOS, first_scan)
    if not progressive and position >= 0 and data[position + 4] == components:
        return True  # the usual file: one scan of everything
    end = data.find(_EOI, first_scan)
    while position >= 0:
        number = data[position + 4]
        header = data[position + 5 : position + 8 + 2 * number]
        first, last, low_bit = header[-3], header[-2], header[-1] & 15
        for component in header[: 2 * number : 2]:
            left = missing.setdefault(component, set(range(_COEFFICIENTS)))
            if not progressive:
                left.clear()
            elif low_bit == 0:
                left.difference_update(range(first, last + 1))
        position = data.find(_SOS, position + 2, end)
    return len(missing) >= components and not any(missing.values())
