"""The resize of the evaluation view: Pillow's own, level for level, for images of any number of channels.

torchvision's and timm's evaluation transforms resize Pillow images. Their networks were therefore measured on these
levels, and a model exported to these libraries sees the same ones. PyTorch's kernel for uint8 tensors keeps filter
weights of 15 bits where Pillow keeps 22: it is three times as fast, but one level off in two to four pixels of a
thousand (measured), which moves a probability by up to some thousandths. Training views are random anyway and use it.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune.data.resize import columns_first

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_COLOUR = 3


def pillow_resize(image_CHW: Tensor, *, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize an image as ``PIL.Image.resize`` does.

    Args:
        image_CHW: Image, uint8, with any number of channels.
        size: New height and width.
        interpolation: Resampling filter: ``nearest``, ``bilinear`` or ``bicubic``.

    Returns:
        uint8 (C, *size); the image itself if it already has that size. It may be laid out channels last.
    """
    if tuple(image_CHW.shape[-2:]) == size:
        return image_CHW
    if len(image_CHW) == _COLOUR:
        resized_HWC = _resized(image_CHW.permute(1, 2, 0), size, interpolation)
        return torch.from_numpy(resized_HWC).permute(2, 0, 1)
    # Pillow resizes each channel by itself, so one after the other gives the same levels
    return torch.from_numpy(np.stack([_resized(channel_HW, size, interpolation) for channel_HW in image_CHW]))


def _resized(
    pixels: Tensor, size: tuple[int, int], interpolation: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image, (height, width) = Image.fromarray(pixels.contiguous().numpy()), size
    if interpolation != "nearest":
        # one axis after the other, in the order of Pillow 13, whichever version is installed
        between = (image.width, height) if columns_first((image.height, image.width), size) else (width, image.height)
        image = image.resize(between, FILTERS[interpolation])
    return np.array(image.resize((width, height), FILTERS[interpolation]))
