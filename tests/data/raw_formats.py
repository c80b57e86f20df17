"""Bytes of image files and profiles that Pillow cannot write, made by hand from the formats' own descriptions."""

import struct
import zlib

import numpy as np

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR = {1: 0, 3: 2, 2: 4, 4: 6}  # samples a pixel -> colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, depth: int, colour: int, interlaced: bool = False) -> bytes:
    """The signature and the IHDR chunk."""
    return _PNG + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced)))


def png(samples: np.ndarray, extra: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG file of 8 or 16 bits from (H, W, S) samples; ``extra`` chunks stand before the pixels."""
    height, width, number = samples.shape
    depth = 8 * samples.dtype.itemsize
    big_endian = samples.astype(samples.dtype.newbyteorder(">"))
    passes = [big_endian[y::down, x::across] for x, y, across, down in _ADAM7] if interlaced else [big_endian]
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    head = png_header(width, height, depth, _PNG_COLOUR[number], interlaced)
    return head + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_few_bits(values: np.ndarray, depth: int) -> bytes:
    """A grey PNG file of 1, 2 or 4 bits from (H, W) small numbers."""
    height, width = values.shape
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits.reshape(height, -1))
    return png_header(width, height, depth, 0) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def tiff(samples: np.ndarray, *, photometric: int = 2, byte_order: str = "<", orientation: int = 1) -> bytes:
    """An uncompressed TIFF file of unsigned integers from (H, W, S) samples, in one strip."""
    height, width, number = samples.shape
    strip = samples.astype(samples.dtype.newbyteorder(byte_order)).tobytes()
    bits = 8 * samples.dtype.itemsize
    strip_at = 8
    bits_at = strip_at + len(strip) + len(strip) % 2
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, number, bits if number == 1 else bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, strip_at),
        (274, 3, 1, orientation),
        (277, 3, 1, number),
        (278, 3, 1, height),
        (279, 4, 1, len(strip)),
    ]
    directory_at = bits_at + 2 * number
    out = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(byte_order + "I", directory_at)
    out += strip.ljust(bits_at - strip_at, b"\0") + struct.pack(f"{byte_order}{number}H", *[bits] * number)
    out += struct.pack(byte_order + "H", len(entries))
    for tag, kind, count, value in entries:
        inline = kind == 3 and count == 1
        packed = struct.pack(byte_order + ("HH" if inline else "I"), *([value, 0] if inline else [value]))
        out += struct.pack(byte_order + "HHI", tag, kind, count) + packed
    return out + struct.pack(byte_order + "I", 0)


def icc_profile(space: str, *, gamma: float, swap_red_green: bool = False, name: bytes = b"test profile") -> bytes:
    """A version 2 profile with sRGB's primaries (Bradford-adapted to D50) and a pure power curve."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *[round(value * 65536) for value in values])

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    white = (0.9642, 1.0, 0.8249)
    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    if swap_red_green:
        red, green = green, red
    name += b"\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + fixed(*white),
    }
    if space == "RGB ":
        for key, value in ((b"r", red), (b"g", green), (b"b", blue)):
            tags[key + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*value)
            tags[key + b"TRC"] = curve
    else:
        tags[b"kTRC"] = curve
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        table += struct.pack(">4sII", key, offset + len(body), len(value))
        body += value.ljust(-(-len(value) // 4) * 4, b"\0")
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02100000, b"mntr", space.encode(), b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*white)
    return head.ljust(128, b"\0") + table + body


def exif(orientation: int) -> bytes:
    """An Exif block with nothing but an orientation, as JPEG, PNG and WebP carry it."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
