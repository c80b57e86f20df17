"""Verifies the checksums of a PNG file, which Pillow does not compute for the chunks that hold the pixels."""

import zlib

_SIGNATURE_BYTES = 8
# length and type before the data, checksum behind
_OVERHEAD = 12


def check_png(data: memoryview) -> None:
    """Verify the checksums of the chunks that decide the pixels, and that the file has its end.

    Chunks of metadata, whose type begins with a small letter, are not checked.

    Raises:
        ValueError: A checksum is wrong, or the file ends before its last chunk does.
    """
    position, kind = _SIGNATURE_BYTES, b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        kind = bytes(data[position + 4 : position + 8])
        end = position + _OVERHEAD + length
        if end > len(data):
            raise ValueError("its last chunk is missing")
        if kind[:1].isupper() or kind == b"tRNS":
            stored = int.from_bytes(data[end - 4 : end], "big")
            if zlib.crc32(data[position + 4 : end - 4]) != stored:
                raise ValueError(f"the checksum of a chunk {kind.decode('latin-1')} is wrong")
        position = end
