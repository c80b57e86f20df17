"""torchvision's decoders of JPEG and WebP, where the installed version has them.

torchvision 0.29 announced the end of its public functions, which warn at every call; the operators that they wrap are
called directly while they exist. Without them, or where one refuses a file, the answer is None and Pillow takes over.
"""

import torch
import torchvision.io  # noqa: F401 (registers the operators)
from torch import Tensor

_GREY, _COLOUR = 1, 3  # values of torchvision.io.ImageReadMode
_OPERATORS = torch.ops.image


def jpeg(data: bytearray, *, channels: int) -> Tensor | None:
    """A JPEG file of 8-bit grey or YCbCr: uint8 (channels, H, W), as stored, or None."""
    try:
        image: Tensor = _OPERATORS.decode_jpeg(_tensor(data), _GREY if channels == 1 else _COLOUR, False)
    except (AttributeError, RuntimeError):
        return None
    return image


def webp(data: bytearray) -> Tensor | None:
    """A simple lossy WebP file: uint8 (3, H, W), or None."""
    try:
        image: Tensor = _OPERATORS.decode_webp(_tensor(data), _COLOUR)
    except (AttributeError, RuntimeError):
        return None
    return image


def _tensor(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8)
