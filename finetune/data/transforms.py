"""Views: from a decoded image to the fixed size that the model takes, with or without augmentation.

All views take and give ``uint8 (C, H, W)``; normalisation belongs to the model. A training view draws its randomness
from torch's global generator alone, so it is a function of the image and of the generator's state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F  # noqa: N812 (the name that torchvision's own pages use)

from finetune.errors import UserError, did_you_mean
from finetune.input_spec import InputSpec

View = Callable[[Tensor], Tensor]

AUGMENTS = ("none", "light", "standard", "trivial_augment", "rand_augment")

# share of the area that a random crop keeps; its sides' ratio; chance of a mirror image
_CROPS = {
    "light": ((0.8, 1.0), (0.9, 1.1), 0.0),
    "standard": ((0.25, 1.0), (3 / 4, 4 / 3), 0.5),
    "trivial_augment": ((0.25, 1.0), (3 / 4, 4 / 3), 0.5),
    "rand_augment": ((0.25, 1.0), (3 / 4, 4 / 3), 0.5),
}


def eval_view(spec: InputSpec) -> View:
    """The deterministic view of evaluation and prediction: the network's own resize and centre crop."""
    return EvalView(spec)


def train_view(spec: InputSpec, *, augment: str) -> View:
    """A random view for training.

    Args:
        spec: The size and the resampling filter.
        augment: One of ``AUGMENTS``. ``none``: the evaluation view. ``light``: slight crops, never mirrored (text,
            digits, medical images). ``standard``: crops of 25 to 100 % of the area, mirrored at random. The other two
            add TrivialAugment (arXiv:2103.10158) or RandAugment (arXiv:1909.13719) to ``standard``.

    Raises:
        UserError: There is no such preset.
    """
    if augment not in AUGMENTS:
        raise UserError(
            f"data.augment={augment!r}: must be one of {', '.join(AUGMENTS)}.{did_you_mean(augment, AUGMENTS)}"
        )
    return EvalView(spec) if augment == "none" else TrainView(spec, augment)


@dataclass(frozen=True)
class EvalView:
    """Resize so that the image covers ``size / crop_pct``, then cut out the centre (or squash both sides)."""

    spec: InputSpec

    def __call__(self, image: Tensor) -> Tensor:
        """From uint8 (C, H, W) to uint8 (C, *size)."""
        height, width = self.spec.size
        if self.spec.crop_mode == "squash":
            return _resize(image, self.spec.size, self.spec)
        # the rounding is timm's and torchvision's, so that their networks see the pixels they were measured with
        target = math.floor(height / self.spec.crop_pct), math.floor(width / self.spec.crop_pct)
        resized = _resize(image, _cover(image, target), self.spec)
        top, left = round((resized.shape[-2] - height) / 2), round((resized.shape[-1] - width) / 2)
        return resized[:, top : top + height, left : left + width].contiguous()


class TrainView:
    """A random crop resized to ``size``, perhaps mirrored, perhaps with further operations."""

    def __init__(self, spec: InputSpec, augment: str) -> None:
        self.spec = spec
        self.area, self.ratio, self.mirror = _CROPS[augment]
        self.further: Callable[[Tensor], Tensor] | None = None
        if augment == "trivial_augment":
            self.further = v2.TrivialAugmentWide()
        elif augment == "rand_augment":
            self.further = v2.RandAugment()

    def __call__(self, image: Tensor) -> Tensor:
        """From uint8 (C, H, W) to uint8 (C, *size)."""
        top, left, height, width = self._box(image.shape[-2], image.shape[-1])
        view = _resize(image[:, top : top + height, left : left + width], self.spec.size, self.spec)
        if self.mirror and float(torch.rand(())) < self.mirror:
            view = view.flip(-1)
        return (self.further(view) if self.further else view).contiguous()

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random crop, as torchvision's RandomResizedCrop chooses it."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for share, tilt, down, right in torch.rand(10, 4).tolist():
            area = height * width * (self.area[0] + share * (self.area[1] - self.area[0]))
            ratio = math.exp(low + tilt * (high - low))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top, left = int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1))
                return top, left, crop_height, crop_width
        # an image too long for any such crop: the largest allowed rectangle in its middle
        crop_width = max(1, min(width, round(height * self.ratio[1])))
        crop_height = max(1, min(height, round(width / self.ratio[0])))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _cover(image: Tensor, target: tuple[int, int]) -> tuple[int, int]:
    """The size with the image's proportions that just covers the target."""
    height, width = image.shape[-2:]
    if target[0] * width <= target[1] * height:
        return max(target[0], int(target[1] * height / width)), target[1]
    return target[0], max(target[1], int(target[0] * width / height))


def _resize(image: Tensor, size: tuple[int, int], spec: InputSpec) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    resized: Tensor = F.resize_image(
        image, list(size), interpolation=InterpolationMode(spec.interpolation), antialias=True
    )
    return resized
