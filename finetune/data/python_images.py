"""Pixels of images that Python holds as objects: Pillow images, arrays and tensors."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import Tensor

from finetune.data.color import Pixels, luma, to_pixels
from finetune.data.decode import DecodeOptions
from finetune.errors import UserError, type_in_words
from finetune.input_spec import check_float_range

# C = channels, H/W = image height/width

FORMS = "Give a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W), of uint8 or of floats in [0, 1]."


def pixels_of(image: Any, name: str, options: DecodeOptions) -> Pixels:
    """Return uint8 (H, W, C) of an object that holds pixels; grey and colour are converted into each other as for files.

    Args:
        image: Pillow image, array (H, W) or (H, W, C), or tensor (C, H, W).
        name: Name of the image, for messages.
        options: Number of channels, and the rule for more than 8 bits.

    Raises:
        UserError: It holds no picture of one or three channels, or values on another scale.
    """
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        pixels = to_pixels(upright, channels=options.channels, rule=options.rule)
        return pixels[..., None] if options.channels == 1 else pixels
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        shape = f" of shape {tuple(image.shape)}" if isinstance(image, np.ndarray) else f": is {type_in_words(image)}"
        raise UserError(f"{name}{shape}. {FORMS}")
    pixels_HWC = image[..., None] if image.ndim == 2 else image
    if np.issubdtype(pixels_HWC.dtype, np.floating):
        if pixels_HWC.size:
            check_float_range(float(pixels_HWC.min()), float(pixels_HWC.max()))
        pixels_HWC = np.rint(pixels_HWC.clip(0, 1) * 255).astype(np.uint8)
    if pixels_HWC.dtype != np.uint8:
        raise UserError(
            f"{name} of type {pixels_HWC.dtype}: must be uint8, or float in [0, 1]. Convert it, or give the file, whose bit "
            "depth is known."
        )
    # copied: the array may be read-only, or change
    return np.array(_in_channels(pixels_HWC, options.channels, name))


def _in_channels(pixels_HWC: npt.NDArray[np.uint8], channels: int, name: str) -> npt.NDArray[np.uint8]:
    given = pixels_HWC.shape[2]
    if given == channels:
        return pixels_HWC
    if given == 1:
        return np.repeat(pixels_HWC, channels, axis=2)
    if given == 3 and channels == 1:
        return luma(pixels_HWC)[..., None]
    raise UserError(
        f"{name} of shape {pixels_HWC.shape}, as (H, W, C): must have {' or '.join(map(str, sorted({channels, 1, 3})))} "
        f"channels. {_hint(pixels_HWC.shape)}"
    )


def _hint(shape_HWC: tuple[int, ...]) -> str:
    if shape_HWC[2] == 4:
        return "Leave out the transparency: image[..., :3] of an array, image[:3] of a tensor."
    return "Arrays have their channels last, tensors have them first."
