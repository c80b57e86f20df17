"""torchvision's JPEG and WebP decoders, where the installed version has them.

torchvision 0.29 deprecated its public functions, which warn at every call; this module calls the operators that they
wrap while these exist. Where an operator is missing or refuses a file, the result is None and Pillow decodes the file.
"""

import torch
import torchvision.io  # noqa: F401 (registers the operators)
from torch import Tensor

_GREY, _COLOUR = 1, 3  # values of torchvision.io.ImageReadMode
_OPERATORS = torch.ops.image


def jpeg(data: bytearray, *, channels: int) -> Tensor | None:
    """Decode a JPEG file of 8-bit grey or YCbCr to uint8 (channels, H, W), as stored; None if that fails."""
    try:
        image: Tensor = _OPERATORS.decode_jpeg(_tensor(data), _GREY if channels == 1 else _COLOUR, False)
    except (AttributeError, RuntimeError):
        return None
    return image


def webp(data: bytearray) -> Tensor | None:
    """Decode a simple lossy WebP file to uint8 (3, H, W); None if that fails."""
    try:
        image: Tensor = _OPERATORS.decode_webp(_tensor(data), _COLOUR)
    except (AttributeError, RuntimeError):
        return None
    return image


def _tensor(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8)
