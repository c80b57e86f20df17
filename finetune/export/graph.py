"""Raw pixels to probabilities as one module that an exporter can trace: resize, crop, network, softmax or sigmoid.

The module computes what :class:`finetune.data.transforms.EvalView` and :class:`finetune.models.classifier.Classifier` compute,
for images of any size. No branch depends on the size, so height and width stay free in the exported graph.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from finetune.confidence.unknown import UNKNOWN_PARAMETERS, unknown_scores
from finetune.data.pillow_resize import Side, resize_window
from finetune.input_spec import InputSpec
from finetune.models.classifier import Classifier

# B = batch, C = channels of the images, H/W = image height/width, K = classes

Layout = Literal["nhwc", "nchw"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


class ImageGraph(nn.Module):
    """Map ``uint8 (B, H, W, C)`` or ``(B, C, H, W)`` images of any size to class probabilities ``(B, K)``.

    For a model that tells unknown images it also returns their scores ``(B,)``.

    Args:
        classifier: Trained model in evaluation mode.
        layout: Position of the channels: ``nhwc`` as in image libraries, ``nchw`` as in PyTorch.
        half: Whether the network runs in half precision; pixels and probabilities stay in single precision.
    """

    def __init__(self, classifier: Classifier, *, layout: Layout = "nhwc", half: bool = False) -> None:
        super().__init__()
        self.input = classifier.input
        self.backbone = classifier.backbone
        self.head = classifier.head
        self.spec = classifier.input_spec
        self.layout = layout
        self.half_precision = half
        self.temperature = classifier.temperature
        self.multi_label = classifier.multi_label
        self.tells_unknown = classifier.unknown is not None
        if classifier.unknown is not None:
            for name, tensor in classifier.unknown.tensors().items():
                self.register_buffer(name, tensor)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return probabilities ``(B, K)``, float32; with them scores ``(B,)``, float32, above 1 for unknown images."""
        images_BCHW = images.permute(0, 3, 1, 2) if self.layout == "nhwc" else images
        pixels_BCHW = resize_and_crop(images_BCHW, self.spec)
        images_BSHW = self.input(pixels_BCHW / 255)
        if self.half_precision:
            images_BSHW = images_BSHW.half()
        features_BD: Tensor = self.backbone(images_BSHW)
        logits_BK: Tensor = self.head(features_BD).float()
        logits_BK = logits_BK if self.temperature == 1 else logits_BK / self.temperature
        probabilities_BK = logits_BK.sigmoid() if self.multi_label else logits_BK.softmax(1)
        if not self.tells_unknown:
            return probabilities_BK
        parameters = {name: self.get_buffer(name) for name in UNKNOWN_PARAMETERS}
        return probabilities_BK, unknown_scores(features_BD, **parameters)


def resize_and_crop(images_BCHW: Tensor, spec: InputSpec) -> Tensor:
    """Return the evaluation view of uint8 images as float in [0, 255], without a branch on their size."""
    height, width = spec.size
    size: tuple[Side, Side] = spec.size
    if spec.crop_mode == "center":
        # rounds as finetune.data.transforms does, which follows timm and torchvision
        size = _cover(images_BCHW, int(height / spec.crop_pct), int(width / spec.crop_pct))
    corner = _half_to_even(size[0] - height), _half_to_even(size[1] - width)
    return resize_window(
        images_BCHW, size=size, corner=corner, window=spec.size, interpolation=spec.interpolation
    ).float()


def _cover(images_BCHW: Tensor, target_height: int, target_width: int) -> tuple[Side, Side]:
    """Return the smallest size with the image's proportions that covers the target."""
    height, width = images_BCHW.shape[-2:]
    half = 0 if target_height == target_width else 1
    # one side equals the target and the other is at least the target: taking the maximum needs no branch
    new_height = torch.sym_max(target_height, (2 * target_width * height + half * width) // (2 * width))
    return new_height, torch.sym_max(target_width, (2 * target_height * width + half * height) // (2 * height))


def _half_to_even(margin: Side) -> Side:
    """Compute ``round(margin / 2)`` as Python rounds, in whole numbers.

    >>> [_half_to_even(n) for n in range(8)] == [round(n / 2) for n in range(8)]
    True
    """
    half = margin // 2
    return half + (margin % 2) * (half % 2)
