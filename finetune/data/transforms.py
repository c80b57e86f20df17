"""Views: turn a decoded image into the fixed size that the model takes, with or without augmentation.

All views take and return ``uint8 (C, H, W)``; normalisation belongs to the model. A training view draws all its
randomness from one generator, so it is a function of the image and of that generator's state. The generator is the one
passed in, or torch's global one, whose numbers are the same for the same seed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F  # noqa: N812 (the name that torchvision's own pages use)

from finetune.augment_settings import AUGMENTS
from finetune.data.evaluation_pixels import evaluation_pixels, resize_target, sharp_side
from finetune.data.pillow_resize_numpy import Pixels
from finetune.errors import UserError, did_you_mean
from finetune.input_spec import InputSpec


class View(Protocol):
    """A function from a decoded image to an image of the input size.

    ``min_side`` is the length of the image's shorter side, in pixels, from which the view loses nothing: a decoder may give
    more, and should give less only if the file has less. ``global_randomness`` tells whether the view draws from torch's global
    generator even if it is passed another one; two threads must not make such views at the same time.
    """

    @property
    def global_randomness(self) -> bool:
        """Tell whether the view draws from torch's global generator."""
        ...

    @property
    def min_side(self) -> int:
        """Return the length of the shorter side that the view needs, in pixels."""
        ...

    def __call__(self, image: Tensor, generator: torch.Generator | None = None, /) -> Tensor:
        """Turn an image, uint8 (C, H, W), into uint8 (C, *size)."""
        ...


@dataclass(frozen=True)
class _Crop:
    """A random crop: the smallest share of the area, the narrowest ratio of the sides, the chance of mirroring.

    With ``inscribed`` the share refers to the largest rectangle with the output's proportions instead of the whole
    image. In a long image no nearly square crop has a large share of the whole, and all crops would be the same centre.
    """

    area: float
    ratio: float
    mirror: float
    inscribed: bool = False


_CROPS = {
    "light": _Crop(area=0.8, ratio=0.9, mirror=0.0, inscribed=True),
    "standard": _Crop(area=0.25, ratio=3 / 4, mirror=0.5),
    "trivial_augment": _Crop(area=0.25, ratio=3 / 4, mirror=0.5),
    "rand_augment": _Crop(area=0.25, ratio=3 / 4, mirror=0.5),
}

# presets that add operations of torchvision, and the names of these
_OPERATIONS = {"trivial_augment": "TrivialAugment", "rand_augment": "RandAugment"}

# source pixels per output pixel along a side of the smallest crop, for crops that differ much in size
_SHARPNESS = 0.75


def eval_view(spec: InputSpec) -> "EvalView":
    """Return the deterministic view for evaluation and prediction: the network's own resize and centre crop."""
    return EvalView(spec)


@dataclass(frozen=True)
class UserTransform:
    """A user-supplied transform, applied to each training view after the augmentation.

    Args:
        function: Function from uint8 (C, H, W) to uint8 of the same shape. It may draw from torch's global generator, which is
            seeded for each view; other generators are not.
        key: Plain JSON values that identify the function, for the key of cached views.
        setting: Setting that names the function, for messages.
    """

    function: Callable[[Tensor], Tensor]
    key: Mapping[str, Any]
    setting: str = "data.transform"

    def __call__(self, view: Tensor) -> Tensor:
        """Transform one view.

        Raises:
            UserError: The function returns something other than uint8 of the same shape.
        """
        changed: object = self.function(view)
        if isinstance(changed, Tensor) and changed.dtype == torch.uint8 and changed.shape == view.shape:
            return changed
        found = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise UserError(
            f"{self.setting}: must return uint8 of the shape it is given, {tuple(view.shape)}. It returned {found}. Leave the "
            "size to input.size and the scale of pixels to the model."
        )


@dataclass(frozen=True, kw_only=True)
class AugmentList:
    """A list of operations in place of a training view.

    Args:
        base: View of ``AUGMENTS`` that the operations follow.
        operations: Operations on a view, in order.
    """

    base: str
    operations: tuple[UserTransform, ...]


def train_view(
    spec: InputSpec,
    *,
    augment: str,
    transform: UserTransform | None = None,
    lists: Mapping[str, AugmentList] | None = None,
) -> View:
    """Return a random view for training.

    Args:
        spec: Input specification, which gives the size and the resampling filter.
        augment: Preset of ``AUGMENTS``. ``none``: the evaluation view. ``light``: slightly smaller crops of the largest
            rectangle with the output's proportions, never mirrored (text, digits, medical images). ``standard``: crops
            of 25 to 100 % of the area, mirrored at random. The other two add TrivialAugment (arXiv:2103.10158) or
            RandAugment (arXiv:1909.13719) to ``standard``.
        transform: A user-supplied transform after that; None for none. The evaluation view has none.
        lists: Lists of operations by the text that ``augment`` may give instead of a preset; None for none.

    Raises:
        UserError: There is no such preset, or it does not take images of so many channels.
    """
    if lists and augment in lists:
        base = train_view(spec, augment=lists[augment].base)
        return ListView(base, (*lists[augment].operations, *([transform] if transform else [])))
    if augment not in AUGMENTS:
        raise UserError(
            f"data.augment={augment!r}: must be one of {', '.join(AUGMENTS)}.{did_you_mean(augment, AUGMENTS)}"
        )
    check_augment_channels(augment, channels=spec.channels)
    return EvalView(spec) if augment == "none" else TrainView(spec, augment, transform)


def check_augment_channels(augment: str, *, channels: int, setting: str = "data.augment") -> None:
    """Refuse a preset of torchvision's operations for images that are neither grey nor colour, which these do not take.

    Raises:
        UserError: The preset does not take images of so many channels.
    """
    if augment in _OPERATIONS and channels not in (1, 3):
        raise UserError(
            f"{setting}={augment!r}: takes images of 1 or 3 channels. The input of this run has {channels}. Use "
            "augment=standard, or a list of operations that take them."
        )


def in_words(spec: InputSpec, *, augment: str) -> str:
    """Describe a training view in one phrase, for the plan.

    >>> in_words(InputSpec(channels=1), augment="light")
    'random crops of 80 to 100 % of the area'
    """
    if augment not in AUGMENTS:  # a list of operations, which its text describes
        return augment
    if augment == "none":
        return "the evaluation view, no augmentation"
    crop = _CROPS[augment]
    parts = [f"random crops of {100 * crop.area:.0f} to 100 % of the area"]
    if crop.mirror:
        parts.append("mirrored at random")
    name = _OPERATIONS.get(augment)
    if name:
        grey = " without its colour operation, which has no effect on one channel" if spec.channels == 1 else ""
        parts.append(f"{name}{grey}")
    return ", ".join(parts)


@dataclass(frozen=True)
class EvalView:
    """The evaluation view; see :func:`finetune.data.evaluation_pixels.evaluation_pixels`."""

    spec: InputSpec
    global_randomness: ClassVar[bool] = False

    @property
    def min_side(self) -> int:
        """Return the shorter side at which a smaller decoded JPEG still gives the same view, up to one or two of 256 values."""
        return sharp_side(self.spec)

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn an image of a source, uint8 (C, H, W), into uint8 (C, *size)."""
        return self.of_pixels(image.permute(1, 2, 0).numpy())

    def of_pixels(self, pixels_HWC: Pixels) -> Tensor:
        """Turn the pixels of a file or of Python, uint8 (H, W, C), into uint8 (C, *size)."""
        view_HWC = evaluation_pixels(pixels_HWC, self.spec)
        return torch.from_numpy(view_HWC).permute(2, 0, 1).contiguous()


class TrainView:
    """A random crop resized to ``size``, perhaps mirrored, perhaps with further operations."""

    def __init__(self, spec: InputSpec, augment: str, transform: UserTransform | None = None) -> None:
        self.spec = spec
        self._own = transform
        self._crop = _CROPS[augment]
        self._further: Callable[[Tensor], Tensor] | None = None
        if augment == "trivial_augment":
            self._further = _GreyTrivialAugment() if spec.channels == 1 else v2.TrivialAugmentWide()
        elif augment == "rand_augment":
            self._further = _GreyRandAugment() if spec.channels == 1 else v2.RandAugment()
        # torchvision's operations take no generator, and a user-supplied transform does not get one
        self.global_randomness = self._further is not None or transform is not None

    @property
    def min_side(self) -> int:
        """Return the shorter side at which no square crop is enlarged by over a third, and most are not enlarged.

        Crops of ``standard`` below 44 % of the area are enlarged, by up to a third. Common practice, which crops a shorter side
        of 256 to 500 pixels to as little as 8 % of the area, enlarges far more. No crop of ``light`` is enlarged, and no view is
        less sharp than that of evaluation.
        """
        sharpness = 1.0 if self._crop.inscribed else _SHARPNESS
        crop = math.ceil(sharpness * max(self.spec.size) / math.sqrt(self._crop.area))
        return max(crop, *resize_target(self.spec))

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn an image, uint8 (C, H, W), into uint8 (C, *size)."""
        top, left, height, width = self._box(image.shape[-2], image.shape[-1], generator)
        view = _resize(image[:, top : top + height, left : left + width], self.spec.size, self.spec)
        if self._crop.mirror and float(torch.rand((), generator=generator)) < self._crop.mirror:
            view = view.flip(-1)
        view = self._further(view) if self._further else view
        return (self._own(view) if self._own else view).contiguous()

    def _box(self, height: int, width: int, generator: torch.Generator | None) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of a random crop as torchvision's RandomResizedCrop does."""
        steepest = math.log(self._crop.ratio)
        whole, proportion = height * width, 1.0
        if self._crop.inscribed:
            proportion = self.spec.size[1] / self.spec.size[0]
            whole = round(min(height * proportion, width) * min(height, width / proportion))
        for share, tilt, down, right in torch.rand(10, 4, generator=generator).tolist():
            area = whole * (self._crop.area + share * (1 - self._crop.area))
            ratio = proportion * math.exp(steepest * (1 - 2 * tilt))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top, left = int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1))
                return top, left, crop_height, crop_width
        # the image is too long for any such crop: take the largest allowed rectangle in its centre
        crop_width = max(1, min(width, round(height / self._crop.ratio)))
        crop_height = max(1, min(height, round(width / self._crop.ratio)))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@dataclass(frozen=True)
class ListView:
    """A view followed by operations, which draw from torch's global generator."""

    base: View
    operations: tuple[UserTransform, ...]
    global_randomness: ClassVar[bool] = True

    @property
    def min_side(self) -> int:
        """Return the length of the shorter side that the view needs, in pixels."""
        return self.base.min_side

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn an image, uint8 (C, H, W), into uint8 (C, *size)."""
        view = self.base(image, generator)
        for operation in self.operations:
            view = operation(view)
        return view.contiguous()


class _GreyTrivialAugment(v2.TrivialAugmentWide):  # type: ignore[misc] # torchvision publishes no types
    """TrivialAugment without the colour operation, which does nothing to a single channel."""

    _AUGMENTATION_SPACE = {k: v for k, v in v2.TrivialAugmentWide._AUGMENTATION_SPACE.items() if k != "Color"}  # noqa: RUF012 (as in the base class)


class _GreyRandAugment(v2.RandAugment):  # type: ignore[misc] # as above
    """RandAugment without the colour operation, which does nothing to a single channel."""

    _AUGMENTATION_SPACE = {k: v for k, v in v2.RandAugment._AUGMENTATION_SPACE.items() if k != "Color"}  # noqa: RUF012 (as above)


def _resize(image: Tensor, size: tuple[int, int], spec: InputSpec) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    # a crop is a view into a larger tensor, which the kernel reads a third slower than a copy in the same layout
    layout = torch.channels_last if image.stride(0) == 1 else torch.contiguous_format
    packed = image.unsqueeze(0).contiguous(memory_format=layout)[0]
    resized: Tensor = F.resize_image(
        packed, list(size), interpolation=InterpolationMode(spec.interpolation), antialias=True
    )
    return resized
