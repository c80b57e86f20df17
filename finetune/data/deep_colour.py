"""Reads the numbers of colour images of 16 bits, of which Pillow keeps the upper eight bits.

Pillow unpacks such pixels in either byte order, each time taking the byte that it holds for the upper one. So the file is
decoded twice, and the two bytes are put together. Pixels of grey with opacity have one order only; their four bytes are
read as if they were red, green, blue and opacity of 8 bits, which PNG filters and stores in the same way.
"""

import sys
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ImageFile, PngImagePlugin, TiffImagePlugin

from finetune.data.array_image import Samples
from finetune.data.libtiff_messages import refusing_damage

_NATIVE = {"little": "L", "big": "B"}[sys.byteorder]
# places in the header of a PNG file, and its value for red, green, blue and opacity
_HEADER, _DEPTH_AT, _TYPE_AT, _HEADER_END = 12, 24, 25, 29
_RGBA_TYPE = 6


def is_deep_colour(image: object) -> bool:
    """Tell whether an image file, opened and not loaded yet, holds numbers of 16 bits of which Pillow drops half."""
    return isinstance(image, (PngImagePlugin.PngImageFile, TiffImagePlugin.TiffImageFile)) and _raw_mode(image) in (
        *("RGB;16B", "RGB;16L", "RGB;16N", "RGBA;16B", "LA;16B"),
    )


def mode_of(image: Any) -> str:
    """Return the mode of the numbers of an image file, opened and not loaded yet: of grey with opacity LA, not Pillow's RGBA."""
    grey = isinstance(image, PngImagePlugin.PngImageFile) and _raw_mode(image) == "LA;16B"
    return "LA" if grey else str(image.mode)


def deep_samples(image: ImageFile.ImageFile, data: bytes | bytearray) -> Samples:
    """Return the numbers of a file for which :func:`is_deep_colour` holds; those of a TIFF are upright.

    Args:
        image: The file, opened and not loaded yet.
        data: Bytes of the file.
    """
    raw_mode = _raw_mode(image)
    if raw_mode == "LA;16B":
        bytes_HW4 = np.asarray(_loaded(PngImagePlugin.PngImageFile(BytesIO(_as_rgba(data)))), np.uint16)
        return Samples(
            values_HWS=bytes_HW4[..., 0::2] * 256 + bytes_HW4[..., 1::2], space="grey", bits=16, opacity="straight"
        )
    name, order = raw_mode.split(";16")
    order = _NATIVE if order == "N" else order
    whole = _loaded(type(image)(BytesIO(data)), f"{name};16{order}")
    upper, clear = np.asarray(whole, np.uint16), whole.info.get("transparency")
    lower = np.asarray(_loaded(type(image)(BytesIO(data)), f"{name};16{'L' if order == 'B' else 'B'}"), np.uint16)
    values: npt.NDArray[Any] = upper * 256 + lower
    if isinstance(clear, tuple) and name == "RGB":
        opacity = np.where((values == np.array(clear)).all(axis=2), 0, 65535)[..., None]
        values = np.concatenate([values, opacity.astype(np.uint16)], axis=2)
    return Samples(values_HWS=values, space="rgb", bits=16, opacity="straight" if values.shape[2] == 4 else "")


def _raw_mode(image: ImageFile.ImageFile) -> str:
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _loaded(image: ImageFile.ImageFile, raw_mode: str | None = None) -> ImageFile.ImageFile:
    """Decode a file, unpacking its pixels in a mode of our choice."""
    if raw_mode is not None:
        image.tile = [
            tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
            for tile in image.tile
        ]
    with refusing_damage():
        image.load()
    return image


def _as_rgba(data: bytes | bytearray) -> bytes:
    """Return a PNG file of two samples of 16 bits with a header that says four samples of 8 bits."""
    changed = bytearray(data)
    changed[_DEPTH_AT], changed[_TYPE_AT] = 8, _RGBA_TYPE
    changed[_HEADER_END : _HEADER_END + 4] = zlib.crc32(changed[_HEADER:_HEADER_END]).to_bytes(4, "big")
    return bytes(changed)
