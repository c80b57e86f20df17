"""Images in whatever form Python has them: paths, Pillow images, arrays, tensors, a column of a data frame."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from finetune.data.column_names import PATH_COLUMNS
from finetune.data.decode import DecodeOptions, decode_file
from finetune.data.image_file import UnreadableImage
from finetune.data.python_images import pixels_of
from finetune.data.transforms import EvalView
from finetune.errors import UserError, type_in_words
from finetune.inference.image_paths import find_images

# C = channels, H/W = image height/width


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


def given_images(images: Any, *, options: DecodeOptions, view: EvalView) -> Iterator[GivenImage]:
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
    for name, image in one_by_one(images):
        if not isinstance(image, str):
            yield GivenImage(name=name, pixels_CHW=view.of_pixels(pixels_of(image, name, options)))
            continue
        try:
            pixels_HWC = decode_file(image, options, min_side=view.min_side)
            yield GivenImage(name=name, pixels_CHW=view.of_pixels(pixels_HWC))
        except UnreadableImage as error:
            yield GivenImage(name=name, error=str(error))


def one_by_one(images: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of each image, and the image: a path as a string, or an object that holds pixels.

    Raises:
        UserError: The images are in no known form, or there is no image at a path.
    """
    if hasattr(images, "tolist") and hasattr(images, "index") and not isinstance(images, (Tensor, np.ndarray)):
        images = images.tolist()  # a column of a data frame
    if isinstance(images, (str, Path)):
        yield from ((path, path) for path in find_images([images]))
    elif hasattr(images, "columns") and hasattr(images, "__getitem__"):
        yield from ((str(path), str(path)) for path in _paths_of(images))
    elif isinstance(images, (Tensor, np.ndarray)):
        _check_order(images)
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
                raise UserError(f"images[{number}]: is {type_in_words(image)}. {_FORMS}")
    else:
        raise UserError(f"images: is {type_in_words(images)}. {_form_of(images)}")


_FORMS = "Give paths, Pillow images, arrays (N, H, W, C), tensors (N, C, H, W), lists of them, or a DataFrame with a column path."


def _form_of(images: Any) -> str:
    if isinstance(images, Iterator):
        return "Give a list: list(images)."
    if hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, Mapping):
        return (
            "Give its images alone, [image for image, _ in images]; finetune.evaluate(model, images) takes targets too."
        )
    if hasattr(images, "dataset"):
        return "Give its data set's images: [image for image, _ in images.dataset]."
    return _FORMS


def _check_order(images: Any) -> None:
    """Check that the channels of a tensor or array stand where its library has them."""
    shape, first, last = tuple(images.shape), isinstance(images, Tensor), (1, 3)
    if images.ndim not in (3, 4):
        return
    before, after = shape[-3], shape[-1]
    if first and before not in last and after in last:
        order = "0, 3, 1, 2" if images.ndim == 4 else "2, 0, 1"
        raise UserError(f"images of shape {shape}: a tensor has its channels first. Use images.permute({order}).")
    if not first and after not in last and before in last and images.ndim == 4:
        raise UserError(f"images of shape {shape}: an array has its channels last. Use images.transpose(0, 2, 3, 1).")


def _paths_of(frame: Any) -> list[Any]:
    columns = {str(name).strip().lower(): name for name in frame.columns}
    column = next((columns[name] for name in PATH_COLUMNS if name in columns), None)
    if column is None:
        raise UserError(
            f"images: a data frame needs a column {' or '.join(PATH_COLUMNS)}. Its columns: {', '.join(columns)}. "
            "Rename one of them."
        )
    return list(frame[column])
