"""The evaluation view of decoded pixels, which evaluation and prediction show the network, with Pillow and NumPy alone.

The resize gives exactly Pillow's pixel values: torchvision's and timm's evaluation transforms resize Pillow images, so their
networks were measured on these values, and a model exported to them sees the same. PyTorch's kernel for uint8 tensors has filter
weights of 15 bits where Pillow has 22: it is three times as fast and off by one in two to four pixels of a thousand (measured),
which moves a probability by up to a few thousandths. Training views, which are random anyway, use that kernel.
"""

import math

import numpy as np
from PIL import Image

from finetune.data.pillow_resize_numpy import Pixels, columns_first, pillow_window
from finetune.input_spec import InputSpec

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_COLOUR = 3
# if one side is this many times the other, only the crop is computed: the whole resized image could fill the memory
_LONGEST = 8


def evaluation_pixels(pixels_HWC: Pixels, spec: InputSpec) -> Pixels:
    """Return the evaluation view: resize so that the image covers ``size / crop_pct`` and crop the centre, or squash it.

    Pixel values, sizes and offsets are those of timm's evaluation transform on a Pillow image, and of torchvision's.

    Args:
        pixels_HWC: uint8, any number of channels.
        spec: The size, the filter and the crop.

    Returns:
        uint8 ``(*size, C)``.
    """
    given, (height, width), filter_name = (pixels_HWC.shape[0], pixels_HWC.shape[1]), spec.size, spec.interpolation
    target = resize_target(spec)
    resized = covering_size(given, target) if spec.crop_mode == "center" else target
    corner = round((resized[0] - height) / 2), round((resized[1] - width) / 2)
    if max(given) > _LONGEST * min(given) or max(resized) > _LONGEST * max(target):
        return pillow_window(pixels_HWC, size=resized, corner=corner, window=(height, width), interpolation=filter_name)
    top, left = corner
    whole_HWC = pillow_resize(pixels_HWC, size=resized, interpolation=filter_name)
    return whole_HWC[top : top + height, left : left + width]


def resize_target(spec: InputSpec) -> tuple[int, int]:
    """Return the size that the resized image must cover, rounded as in timm and torchvision; for squash, its exact size."""
    height, width = spec.size
    if spec.crop_mode == "squash":
        return height, width
    return math.floor(height / spec.crop_pct), math.floor(width / spec.crop_pct)


def sharp_side(spec: InputSpec) -> int:
    """Return the shorter side, in pixels, at which a smaller decoded JPEG gives the same view, up to one or two of 256 values."""
    return 2 * max(math.floor(side / spec.crop_pct) for side in spec.size)


def covering_size(given: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size with the image's proportions that covers the target.

    The longer side is truncated to a whole number as in torchvision; for a non-square target it is rounded as in timm.
    """
    height, width = given
    half = 0 if target[0] == target[1] else 1
    if target[0] * width <= target[1] * height:
        return max(target[0], (2 * target[1] * height + half * width) // (2 * width)), target[1]
    return target[0], max(target[1], (2 * target[0] * width + half * height) // (2 * height))


def pillow_resize(pixels_HWC: Pixels, *, size: tuple[int, int], interpolation: str) -> Pixels:
    """Resize as ``PIL.Image.resize`` does.

    Args:
        pixels_HWC: Any number of channels.
        size: New height and width.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``.

    Returns:
        uint8 ``(*size, C)``; the image itself if it has that size.
    """
    if pixels_HWC.shape[:2] == size:
        return pixels_HWC
    channels = pixels_HWC.shape[2]
    if channels == _COLOUR:
        return _resized(pixels_HWC, size, interpolation)
    # Pillow resizes the channels independently, so resizing one after another is the same
    return np.stack([_resized(pixels_HWC[..., number], size, interpolation) for number in range(channels)], axis=2)


def _resized(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    image, (height, width) = Image.fromarray(np.ascontiguousarray(pixels)), size
    if interpolation != "nearest":
        # one axis after the other, in the order of Pillow 13 whatever version is installed
        between = (image.width, height) if columns_first((image.height, image.width), size) else (width, image.height)
        image = image.resize(between, FILTERS[interpolation])
    return np.array(image.resize((width, height), FILTERS[interpolation]))
