"""Thumbnails as data URLs."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from finetune.data.image_file import UnreadableImage
from finetune.data.image_source import Source
from finetune.input_spec import InputSpec

SIDE_PX = 112


def thumbnail(image_CHW: Tensor, *, side_px: int = SIDE_PX) -> str:
    """Return a uint8 image of any size as a JPEG whose longer side is at most ``side_px`` pixels; never enlarged."""
    # imported late: torchvision takes two seconds
    from finetune.data.transforms import eval_view

    height, width = image_CHW.shape[-2:]
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    spec = InputSpec(channels=int(image_CHW.shape[0]), size=size, crop_mode="squash")
    return data_url(eval_view(spec)(image_CHW))


def source_thumbnail(source: Source, row: int | None) -> str | None:
    """Return a thumbnail of an image as a data URL; None if there is no row or the image cannot be read."""
    if row is None:
        return None
    try:
        image = source.read(row, min_side=SIDE_PX)
    except UnreadableImage:
        return None
    return thumbnail(image)


def data_url(image_CHW: Tensor) -> str:
    """Return a uint8 image as a data URL, unscaled, by its :func:`shown_channels`."""
    shown = shown_channels(image_CHW)
    return pixels_url(shown[0].numpy() if shown.shape[0] == 1 else shown.permute(1, 2, 0).numpy())


def shown_channels(image_CHW: Tensor) -> Tensor:
    """Return the channels that a picture shows: of more than three the first three, of two the first."""
    return image_CHW[: 3 if image_CHW.shape[0] >= 3 else 1]


def pixels_url(pixels: npt.NDArray[np.uint8]) -> str:
    """Return pixels (H, W) or (H, W, 3) as a data URL, unscaled."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
