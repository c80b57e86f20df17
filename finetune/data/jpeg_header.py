"""Reads the markers of a JPEG file up to its first scan: enough to choose a decoder, in microseconds."""

import struct
from dataclasses import dataclass

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_APP1, _APP2, _APP14 = 0xE1, 0xE2, 0xEE
# start of frame: all of C0 to CF except C4 (Huffman tables), C8 (reserved) and CC (arithmetic conditioning)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ICC = b"ICC_PROFILE\0"
_EXIF = b"Exif\0\0"


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """The frame and the metadata of a JPEG file (ITU-T T.81, annex B).

    Args:
        width: Number of pixels in a row.
        height: Number of rows.
        precision: Bits per sample; 8 in all but medical files.
        components: Number of components: 1 for grey, 3 for colour, 4 for ink.
        adobe_transform: Colour transform in the Adobe marker: 0 for RGB or CMYK as stored, 1 for YCbCr, 2 for YCCK;
            None without an Adobe marker.
        icc: Colour profile; empty if there is none.
        exif: Exif segment with its prefix, as Pillow reads it; empty if there is none.
        complete: Whether an end-of-image marker follows the first scan.
    """

    width: int
    height: int
    precision: int
    components: int
    adobe_transform: int | None
    icc: bytes
    exif: bytes
    complete: bool


def read_jpeg_header(data: bytes | bytearray) -> JpegHeader | None:
    """Parse the markers up to the first scan; return None where they do not follow the standard."""
    frame: tuple[int, int, int, int] | None = None
    adobe_transform = None
    profile_parts: dict[int, bytes] = {}
    exif = b""
    position = 2
    try:
        while True:
            if data[position] != 0xFF:
                return None
            marker = data[position + 1]
            if marker == 0xFF:  # fill byte
                position += 1
                continue
            if marker == 0x01 or 0xD0 <= marker <= _SOI:  # markers without a body
                position += 2
                continue
            if marker == _EOI:
                return None
            (length,) = struct.unpack_from(">H", data, position + 2)
            start, end = position + 4, position + 2 + length
            if marker == _SOS:
                break
            if marker in _FRAMES and frame is None:
                frame = struct.unpack_from(">BHHB", data, start)
            elif marker == _APP2 and data.startswith(_ICC, start, end):
                profile_parts[data[start + len(_ICC)]] = bytes(data[start + len(_ICC) + 2 : end])
            elif marker == _APP1 and not exif and data.startswith(_EXIF, start, end):
                exif = bytes(data[start:end])
            elif marker == _APP14 and data.startswith(b"Adobe", start, end) and length >= 14:
                adobe_transform = data[start + 11]
            position = end
    except (IndexError, struct.error):
        return None
    if frame is None:
        return None
    precision, height, width, components = frame
    return JpegHeader(
        width=width,
        height=height,
        precision=precision,
        components=components,
        adobe_transform=adobe_transform,
        icc=b"".join(profile_parts[number] for number in sorted(profile_parts)),
        exif=exif,
        complete=data.rfind(b"\xff\xd9", position) > 0,
    )
