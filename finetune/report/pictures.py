"""Images of a data set as small pictures inside a page."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from finetune.data.decode import UnreadableImage
from finetune.data.reading import Source
from finetune.data.transforms import eval_view
from finetune.input_spec import InputSpec

THUMBNAIL_PX = 112


def thumbnail(source: Source, row: int | None) -> str | None:
    """The whole image of a row as a data URL; None where it cannot be read."""
    if row is None:
        return None
    try:
        image = source.read(row, at_least=THUMBNAIL_PX)
    except UnreadableImage:
        return None
    height, width = image.shape[-2:]
    scale = min(1.0, THUMBNAIL_PX / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    spec = InputSpec(channels=int(image.shape[0]), size=size, crop_mode="squash")
    return data_url(eval_view(spec)(image))


def data_url(image_CHW: Tensor) -> str:
    """A ``uint8`` image of one or three channels as a JPEG inside a URL."""
    return pixels_url(image_CHW[0].numpy() if image_CHW.shape[0] == 1 else image_CHW.permute(1, 2, 0).numpy())


def pixels_url(pixels: npt.NDArray[np.uint8]) -> str:
    """``uint8`` (H, W) or (H, W, 3), likewise."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
