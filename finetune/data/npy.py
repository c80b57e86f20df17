"""Opens ``.npy`` files of NumPy as images: (H, W) grey, (H, W, N) or (N, H, W) with N channels.

The channels are the last axis, or the first where that is shorter than both others. One channel is grey, three are red, green and
blue, any other number are bands. Nothing is unpickled: a header that announces objects is refused.
"""

import math
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from finetune.data.array_image import ArrayImage, Samples, Space
from finetune.data.image_file import UnreadableImage

_KINDS = "buif"


def open_npy(data: bytes | bytearray, *, path: str) -> ArrayImage:
    """Read the header of a file in memory.

    Raises:
        UnreadableImage: It holds something other than the numbers of one image.
        ValueError: It is damaged or cut short.
    """
    file = BytesIO(data)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UnreadableImage(path, f"It is a NumPy array of version {version[0]}.{version[1]}, which holds no image.")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, kind = read(file)
    if kind.kind not in _KINDS or len(shape) not in (2, 3) or min(shape) < 1:
        raise UnreadableImage(
            path,
            f"It is a NumPy array of {kind} and shape {shape}. An image has numbers, and shape (H, W) or (H, W, channels).",
        )
    start = file.tell()
    if len(data) - start != math.prod(shape) * kind.itemsize:
        raise ValueError(f"it holds {len(data) - start:,} bytes, its header says {math.prod(shape) * kind.itemsize:,}")
    first = len(shape) == 3 and shape[0] < min(shape[1:])
    height, width, number = (shape[1], shape[2], shape[0]) if first else (*shape, 1)[:3]

    def values() -> npt.NDArray[Any]:
        array = np.frombuffer(data, kind, offset=start).reshape(shape, order="F" if by_columns else "C")
        placed = np.moveaxis(array, 0, -1) if first else array.reshape(height, width, number)
        # in the machine's own order of bytes
        return np.ascontiguousarray(placed, np.uint8 if kind.kind == "b" else kind.newbyteorder("="))

    def samples(space: Space) -> Samples:
        bits = 0 if kind.kind == "f" else 1 if kind.kind == "b" else 8 * kind.itemsize
        return Samples(values_HWS=values(), space=space, bits=bits)

    space: Space = {1: "grey", 3: "rgb"}.get(number, "bands")  # type: ignore[assignment]  # both are spaces
    return ArrayImage(
        width=width,
        height=height,
        mode=_mode(kind, number),
        format="NPY",
        load=lambda: samples(space),
        channels=number,
        load_bands=lambda: samples("bands"),
    )


def _mode(kind: "np.dtype[Any]", number: int) -> str:
    deep = kind.kind == "u" and kind.itemsize == 2
    small = kind.kind in "ub" and kind.itemsize == 1
    if number not in (1, 3):
        return f"bands{'' if small else ';16' if deep else ';32'}"
    if number == 3:
        return f"RGB{';16' * deep}"
    return "L" if small else "F" if kind.kind == "f" else "I;16" if deep else "I"
