"""Images in whatever form Python has them: paths, Pillow images, arrays, tensors, a column of a data frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from finetune.data.color import to_pixels
from finetune.data.decode import DecodeOptions, decode_file, to_tensor
from finetune.data.image_file import UnreadableImage
from finetune.data.transforms import View
from finetune.errors import UserError
from finetune.inference.image_paths import PATH_COLUMNS, find_images
from finetune.models.raw_images import check_range

# C = channels, H/W = image height/width

# luma of ITU-R BT.601, as in finetune.data.color
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, kw_only=True)
class GivenImage:
    """One image to classify.

    Args:
        name: Its path, or its position among the images, for the table.
        pixels_CHW: Evaluation view, uint8; None where the image cannot be read.
        error: Reason why it cannot be read; empty otherwise.
    """

    name: str
    pixels_CHW: Tensor | None = None
    error: str = ""


def given_images(images: Any, *, options: DecodeOptions, view: View) -> Iterator[GivenImage]:
    """Yield the evaluation view of each image, one after the other.

    Args:
        images: A path, folder, pattern or list of them, as ``finetune predict`` takes them; a Pillow image or a list; an array
            (H, W), (H, W, C) or (N, H, W, C), or a list of those; a tensor (C, H, W) or (N, C, H, W), or a list of those; a data
            frame with a column of paths.
        options: How files become pixels.
        view: The evaluation view of the model.

    Raises:
        UserError: The images are in none of these forms, or there is no image at a path.
    """
    for name, image in _one_by_one(images):
        if not isinstance(image, str):
            yield GivenImage(name=name, pixels_CHW=view(_pixels(image, name, options)))
            continue
        try:
            yield GivenImage(name=name, pixels_CHW=view(to_tensor(decode_file(image, options, at_least=view.at_least))))
        except UnreadableImage as error:
            yield GivenImage(name=name, error=str(error))


def _one_by_one(images: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of each image, and the image: a path as a text, or an object that holds pixels."""
    if isinstance(images, (str, Path)):
        yield from ((path, path) for path in find_images([images]))
    elif hasattr(images, "columns") and hasattr(images, "__getitem__"):
        yield from ((str(path), str(path)) for path in _paths_of(images))
    elif isinstance(images, (Tensor, np.ndarray)):
        single = images.ndim == 3 if isinstance(images, Tensor) else images.ndim in (2, 3)
        several = [images] if single else list(images) if images.ndim == 4 else None
        if several is None:
            raise UserError(f"images of shape {tuple(images.shape)}: {_FORMS}")
        yield from ((f"image {number}", image) for number, image in enumerate(several))
    elif isinstance(images, Image.Image):
        yield "image 0", images
    elif isinstance(images, Sequence):
        for number, image in enumerate(images):
            if isinstance(image, (str, Path)):
                yield from ((path, path) for path in find_images([image]))
            elif isinstance(image, (Tensor, np.ndarray, Image.Image)):
                yield f"image {number}", image
            else:
                raise UserError(f"images[{number}]: is a {type(image).__name__}. {_FORMS}")
    else:
        raise UserError(f"images: is a {type(images).__name__}. {_FORMS}")


_FORMS = "Give paths, Pillow images, arrays (N, H, W, C), tensors (N, C, H, W), lists of them, or a DataFrame with a column path."


def _paths_of(frame: Any) -> list[Any]:
    columns = {str(name).strip().lower(): name for name in frame.columns}
    column = next((columns[name] for name in PATH_COLUMNS if name in columns), None)
    if column is None:
        raise UserError(
            f"images: a data frame needs a column {' or '.join(PATH_COLUMNS)}. Its columns: {', '.join(columns)}. "
            "Rename one of them."
        )
    return list(frame[column])


def _pixels(image: Any, name: str, options: DecodeOptions) -> Tensor:
    """Return uint8 (C, H, W) of an object that holds pixels.

    Raises:
        UserError: It holds no picture of one or three channels.
    """
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        pixels = to_pixels(upright, channels=options.channels, rule=options.rule)
        return to_tensor(pixels[..., None] if options.channels == 1 else pixels)
    if isinstance(image, Tensor):
        image = image.detach().cpu().permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
    pixels_HWC = image[..., None] if image.ndim == 2 else image
    if pixels_HWC.ndim != 3:
        raise UserError(f"{name} of shape {tuple(image.shape)}: {_FORMS}")
    if np.issubdtype(pixels_HWC.dtype, np.floating):
        check_range(torch.from_numpy(np.ascontiguousarray(pixels_HWC)))
        pixels_HWC = np.rint(pixels_HWC.clip(0, 1) * 255).astype(np.uint8)
    if pixels_HWC.dtype != np.uint8:
        raise UserError(
            f"{name} of type {pixels_HWC.dtype}: must be uint8, or float in [0, 1]. Convert it, or give the file, whose bit "
            "depth is known."
        )
    return to_tensor(np.array(_in_channels(pixels_HWC, options.channels, name)))


def _in_channels(pixels_HWC: Any, channels: int, name: str) -> Any:
    given = pixels_HWC.shape[2]
    if given == channels:
        return pixels_HWC
    if given == 1:
        return np.repeat(pixels_HWC, channels, axis=2)
    if given == 3 and channels == 1:
        return np.rint(pixels_HWC @ _LUMA).astype(np.uint8)[..., None]
    raise UserError(
        f"{name} of shape {tuple(pixels_HWC.shape)}, as (H, W, C): must have {channels} channels, or 1 or 3. Arrays have their "
        "channels last, tensors have them first."
    )
