"""Batches of raw images as users give them: refuses what would be misread, and brings other sizes to the input size."""

import numpy as np
import torch
from torch import Tensor

from finetune.data.evaluation_pixels import evaluation_pixels
from finetune.errors import UserError
from finetune.input_spec import InputSpec, check_float_range

# B = batch, C = channels, H/W = image height/width


def check_layout(images_BCHW: Tensor, spec: InputSpec) -> None:
    """Check that a batch has the channels of the model in second place, and bytes or floats.

    Raises:
        UserError: It has not; the message names the call that brings it into the right form.
    """
    shape, channels = tuple(images_BCHW.shape), spec.channels
    rule = f"images of shape {shape}: this model takes (B, {channels}, H, W)."
    if images_BCHW.ndim == 4 and shape[1] != channels and shape[3] == channels:
        raise UserError(f"{rule} These have the channels last. Use images.permute(0, 3, 1, 2).")
    if images_BCHW.ndim == 3:
        if shape[0] == channels:
            raise UserError(f"{rule} This is one image. Use images[None].")
        if shape[2] == channels:
            raise UserError(f"{rule} This is one image with the channels last. Use images.permute(2, 0, 1)[None].")
        if channels == 1:
            raise UserError(f"{rule} These have no dimension of channels. Use images[:, None].")
    if images_BCHW.ndim != 4 or shape[1] != channels:
        raise UserError(f"{rule} Convert the images, or train with input.channels={shape[1] if len(shape) > 1 else 1}.")
    if images_BCHW.dtype != torch.uint8 and not images_BCHW.is_floating_point():
        raise UserError(
            f"images of type {images_BCHW.dtype}: this model takes uint8, or float in [0, 1]. Use images.to(torch.uint8) "
            "where the values are 0 to 255."
        )


def check_range(images: Tensor) -> None:
    """Check that float images are on the scale 0 to 1; others have been normalised, or were left at 0 to 255.

    Raises:
        UserError: With the range of the values.
    """
    if images.is_floating_point() and images.numel():
        low, high = (float(value) for value in images.detach().aminmax())
        check_float_range(low, high)


def at_input_size(images_BCHW: Tensor, spec: InputSpec) -> Tensor:
    """Return the evaluation view of each image, as ``finetune predict`` and an export make it; the input size stays as it is.

    Args:
        images_BCHW: uint8, or float in [0, 1], which is rounded to the 256 values that the resize takes.
        spec: Size, filter and crop.

    Returns:
        ``(B, C, *size)`` of the same type.

    Raises:
        UserError: The images need a gradient, which does not pass through a resize of whole values.
    """
    if tuple(images_BCHW.shape[-2:]) == spec.size:
        return images_BCHW
    if images_BCHW.requires_grad:
        raise UserError(
            f"images of {images_BCHW.shape[-2]} x {images_BCHW.shape[-1]} pixels: must have the input size "
            f"{spec.size[0]} x {spec.size[1]} where a gradient with respect to them is wanted. Resize them first."
        )
    floats = images_BCHW.is_floating_point()
    whole_BCHW = (images_BCHW * 255).round().clamp(0, 255).to(torch.uint8) if floats else images_BCHW
    pixels_BHWC = whole_BCHW.cpu().permute(0, 2, 3, 1).numpy()
    views = [evaluation_pixels(image_HWC, spec) for image_HWC in pixels_BHWC]
    empty = np.zeros((0, *spec.size, spec.channels), np.uint8)
    resized = torch.from_numpy(np.stack(views) if views else empty).permute(0, 3, 1, 2).to(images_BCHW.device)
    return (resized.to(images_BCHW.dtype) / 255) if floats else resized.contiguous()
