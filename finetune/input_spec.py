"""The contract between data, model and export: the form of an image when it reaches the model."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from finetune.errors import UserError
from finetune.plain import Json

Interpolation = Literal["nearest", "bilinear", "bicubic"]
CropMode = Literal["center", "squash"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# most pixels of one input image: larger ones take gigabytes before the network computes anything
MOST_PIXELS = 4096 * 4096
MOST_CHANNELS = 1024
# mean and std are on the scale 0 to 1; a std below a thousandth of one grey level is a mistake
LARGEST_MEAN, SMALLEST_STD = 1e4, 1e-6


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The specification of how an image file becomes the ``uint8 (B, C, H, W)`` batch that a :class:`Classifier` takes.

    Decoding and the evaluation view are part of the data side and use ``channels``, ``size``, ``interpolation``,
    ``crop_pct`` and ``crop_mode``; normalisation is part of the model and uses ``mean`` and ``std``.

    Args:
        channels: Number of channels of the image passed to the model (1 for grey, 3 for colour).
        size: Height and width in pixels.
        mean: Mean per channel that the pretrained network expects, on the scale 0 to 1.
        std: Standard deviation per channel that the pretrained network expects, on the scale 0 to 1.
        interpolation: Resampling filter of the resize (antialiased).
        crop_pct: Fraction of the resized side that the evaluation crop keeps: the shorter side is resized to
            ``size / crop_pct`` and the centre is cropped. 1.0 keeps all of a square image.
        crop_mode: Crop of the evaluation view: ``center`` keeps the aspect ratio and crops; ``squash`` resizes both
            sides to ``size``.

    Raises:
        UserError: A value is out of range, or ``mean`` and ``std`` differ in length.
    """

    channels: int = 3
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 0.875
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        self._check_types()
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise UserError(f"input.channels={self.channels}: must be at least 1 and at most {MOST_CHANNELS}.")
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"input.size={list(self.size)}: must be a height and a width of at least one pixel.")
        if self.size[0] * self.size[1] > MOST_PIXELS:
            raise UserError(
                f"input.size={list(self.size)}: must be at most {MOST_PIXELS:,} pixels. These are "
                f"{self.size[0] * self.size[1]:,}. Choose a smaller size."
            )
        if len(self.mean) != len(self.std):
            raise UserError(f"input.mean={list(self.mean)}: must be as long as input.std={list(self.std)}.")
        if not self.std or min(self.std) <= 0:
            raise UserError(f"input.std={list(self.std)}: must be positive.")
        if min(self.std) < SMALLEST_STD or max(map(abs, (*self.std, *self.mean))) > LARGEST_MEAN:
            raise UserError(
                f"input.mean={list(self.mean)}, input.std={list(self.std)}: must be on the scale 0 to 1. "
                f"A std below {SMALLEST_STD} or a number above {LARGEST_MEAN:,.0f} is not."
            )
        if self.interpolation not in get_args(Interpolation):
            raise UserError(
                f"input.interpolation={self.interpolation!r}: must be one of {', '.join(get_args(Interpolation))}."
            )
        if self.crop_mode not in get_args(CropMode):
            raise UserError(f"input.crop_mode={self.crop_mode!r}: must be one of {', '.join(get_args(CropMode))}.")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"input.crop_pct={self.crop_pct}: must be above 0 and at most 1.")
        if self.size[0] * self.size[1] / self.crop_pct**2 > 4 * MOST_PIXELS:
            raise UserError(
                f"input.crop_pct={self.crop_pct}: images are resized to input.size / input.crop_pct, which must be at most "
                f"{4 * MOST_PIXELS:,} pixels. Choose a larger share."
            )

    def _check_types(self) -> None:
        """Check the types: a file may give any JSON value, and Python counts a bool as an int."""
        if type(self.channels) is not int:
            raise UserError(f"input.channels={self.channels!r}: must be a whole number.")
        if not isinstance(self.size, tuple) or any(type(side) is not int for side in self.size):
            raise UserError(f"input.size={self.size!r}: must be a height and a width, whole numbers of pixels.")
        for key in ("mean", "std"):
            numbers = getattr(self, key)
            if not isinstance(numbers, tuple) or not all(_is_finite(number) for number in numbers):
                raise UserError(f"input.{key}={numbers!r}: must be finite numbers, one per channel.")
        if not _is_finite(self.crop_pct):
            raise UserError(f"input.crop_pct={self.crop_pct!r}: must be a number above 0 and at most 1.")

    def to_dict(self) -> dict[str, Json]:
        """Return plain JSON values, which :meth:`from_dict` reads.

        >>> InputSpec.from_dict(InputSpec(channels=1).to_dict()) == InputSpec(channels=1)
        True
        """
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InputSpec":
        """Build a specification from the values that :meth:`to_dict` returned.

        Raises:
            UserError: A key is missing, unknown or out of range.
        """
        field_names = set(cls.__dataclass_fields__)
        if set(values) != field_names:
            wrong = sorted(set(values) ^ field_names)
            raise UserError(f"input: the keys must be {', '.join(sorted(field_names))}. Missing or unknown: {wrong}.")
        fields: Mapping[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


# a resize of floats may overshoot a little
_LOWEST, _HIGHEST = -0.5, 1.5


def check_float_range(low: float, high: float) -> None:
    """Check that float images are on the scale 0 to 1; others have been normalised, or were left at 0 to 255.

    Args:
        low: Smallest value of the images; NaN if one of them is NaN.
        high: Largest value.

    Raises:
        UserError: They are on another scale, or hold NaN.
    """
    if math.isnan(low):
        raise UserError(
            "images: hold NaN. Replace these values, by 0 for instance, or leave out the images that have them."
        )
    if low < _LOWEST or high > _HIGHEST:
        raise UserError(
            f"images: float from {low:.3g} to {high:.3g}. The classifier takes float in [0, 1], or uint8, and normalises "
            "them itself. Leave Normalize out of the transforms, or divide by 255."
        )


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
