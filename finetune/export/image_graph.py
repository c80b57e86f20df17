"""The whole path from raw pixels to probabilities as one module that an exporter can trace: resize, crop, network, softmax.

It computes what :class:`finetune.data.transforms.EvalView` and :class:`finetune.models.classifier.Classifier` compute, for
images of any size, written without a branch on the size so that height and width stay free in the exported graph.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from finetune.export.resize import nearest_like_evaluation, resize_like_evaluation
from finetune.input_spec import InputSpec
from finetune.models.classifier import Classifier

# B = batch, C = channels of the user's image, H/W = image height/width, K = classes

Layout = Literal["nhwc", "nchw"]
# a number of pixels, or a symbol for one while a graph is traced
Side = int | torch.SymInt
# as finetune.data.transforms has it: how many times the target's side an image may have after the resize
LONGEST = 8
LAYOUTS: tuple[str, ...] = get_args(Layout)


class ImageGraph(nn.Module):
    """``uint8 (B, H, W, C)`` or ``(B, C, H, W)`` of any size to class probabilities ``(B, K)``.

    Args:
        classifier: In evaluation mode.
        layout: Where the channels are: ``nhwc`` as image libraries give pixels, ``nchw`` as PyTorch has them.
        half: Run the network in half precision; pixels and softmax stay in single precision.
    """

    def __init__(self, classifier: Classifier, *, layout: Layout = "nhwc", half: bool = False) -> None:
        super().__init__()
        self.input = classifier.input
        self.backbone = classifier.backbone
        self.head = classifier.head
        self.spec = classifier.input_spec
        self.layout = layout
        self.half_precision = half

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities ``(B, K)``, float32."""
        images_BCHW = images.permute(0, 3, 1, 2) if self.layout == "nhwc" else images
        pixels_BCHW = resize_and_crop(images_BCHW, self.spec)
        images_BSHW = self.input(pixels_BCHW / 255)
        if self.half_precision:
            images_BSHW = images_BSHW.half()
        logits_BK: Tensor = self.head(self.backbone(images_BSHW))
        return logits_BK.float().softmax(1)


def resize_and_crop(images_BCHW: Tensor, spec: InputSpec) -> Tensor:
    """The evaluation view of uint8 images as float on the scale 0 to 255, without a branch on their size."""
    height, width = spec.size
    if spec.crop_mode == "squash":
        return _resized(images_BCHW, height, width, spec)
    # the rounding of finetune.data.transforms, which is timm's and torchvision's
    target_height, target_width = int(height / spec.crop_pct), int(width / spec.crop_pct)
    images_BCHW = _middle(images_BCHW, target_height, target_width)
    new_height, new_width = _cover(images_BCHW, target_height, target_width)
    resized_BCHW = _resized(images_BCHW, new_height, new_width, spec)
    top, left = _half_to_even(new_height - height), _half_to_even(new_width - width)
    return resized_BCHW[:, :, top : top + height, left : left + width]


def _cover(images_BCHW: Tensor, target_height: int, target_width: int) -> tuple[Side, Side]:
    """The size with the image's proportions that just covers the target."""
    height, width = images_BCHW.shape[-2:]
    # of the two sides one is exactly the target and the other at least that: taking the larger needs no branch
    new_height = torch.sym_max(target_height, target_width * height // width)
    return new_height, torch.sym_max(target_width, target_height * width // height)


def _middle(images_BCHW: Tensor, target_height: int, target_width: int) -> Tensor:
    """The middle of an image so long that all of it, resized, would fill the memory; any other image whole."""
    height, width = images_BCHW.shape[-2:]
    new_height, new_width = _cover(images_BCHW, target_height, target_width)
    # rounded up by adding the divisor less one
    keep_height = torch.sym_min(height, (height * LONGEST * target_height + new_height - 1) // new_height)
    keep_width = torch.sym_min(width, (width * LONGEST * target_width + new_width - 1) // new_width)
    top, left = (height - keep_height) // 2, (width - keep_width) // 2
    return images_BCHW[:, :, top : top + keep_height, left : left + keep_width]


def _resized(images_BCHW: Tensor, height: Side, width: Side, spec: InputSpec) -> Tensor:
    if spec.interpolation == "nearest":
        return nearest_like_evaluation(images_BCHW, height=height, width=width).float()
    return resize_like_evaluation(images_BCHW, height=height, width=width, interpolation=spec.interpolation).float()


def _half_to_even(margin: Side) -> Side:
    """``round(margin / 2)`` as Python rounds, in whole numbers.

    >>> [_half_to_even(n) for n in range(8)] == [round(n / 2) for n in range(8)]
    True
    """
    half = margin // 2
    return half + (margin % 2) * (half % 2)
