"""Bytes of an image file to a ``uint8 (C, H, W)`` tensor: what a person sees in a viewer, in one or three channels."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from finetune.errors import UserError


class UnreadableImage(UserError):  # noqa: N818 (it names the thing, as the message does)
    """A file that cannot be read as an image.

    Args:
        path: The file.
        reason: Why, in words for the user.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: cannot be read as an image. {reason} Replace or remove the file.")

    def __reduce__(self) -> tuple[Any, ...]:
        # an exception that crosses from a worker process is rebuilt from its arguments, not from its message
        return type(self), (self.path, self.reason)


def decode_image(path: str, *, channels: int, at_least: int | None = None) -> torch.Tensor:
    """Read an image.

    Args:
        path: The file.
        channels: 1 for grey, 3 for colour.
        at_least: The shorter side may be decoded smaller than it is, but to no fewer pixels than this.

    Returns:
        uint8 (channels, H, W).

    Raises:
        UnreadableImage: The file is missing, damaged or no image.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    try:
        with Image.open(path) as image:
            if at_least is not None:
                image.draft(mode, (at_least, at_least))
            picture = ImageOps.exif_transpose(image).convert(mode)
    except FileNotFoundError:
        raise UnreadableImage(path, "The file does not exist.") from None
    except Exception as error:  # Pillow's plugins raise many types on damaged files
        raise UnreadableImage(path, f"{type(error).__name__}: {error}.") from error
    pixels = torch.from_numpy(np.array(picture))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)
