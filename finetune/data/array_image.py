"""Images decoded by libraries other than Pillow, and their conversion to 8-bit pixels."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.color import DepthRule, Pixels, scale_to_bytes, to_pixels

Space = Literal["grey", "rgb", "cmyk", "bands"]
_CHANNELS: dict[Space, int] = {"grey": 1, "rgb": 3, "cmyk": 4}
_MODES: dict[tuple[Space, str], str] = {
    ("grey", ""): "L",
    ("grey", "straight"): "LA",
    ("grey", "premultiplied"): "La",
    ("rgb", ""): "RGB",
    ("rgb", "straight"): "RGBA",
    ("rgb", "premultiplied"): "RGBa",
    ("cmyk", ""): "CMYK",
}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of an image and their meaning.

    Args:
        values_HWS: Sample values of any type: the colour channels, then perhaps an alpha channel.
        space: Colour space of the colour channels; ``bands`` for channels that are no colours, any number of them.
        bits: Bits per sample as the file declares them; 0 for floating point.
        white_is_zero: Whether the smallest value is the brightest.
        opacity: Empty without an alpha channel; else whether the colours are already multiplied by it.
    """

    values_HWS: npt.NDArray[Any]
    space: Space
    bits: int
    white_is_zero: bool = False
    opacity: Literal["", "straight", "premultiplied"] = ""

    @property
    def colours(self) -> int:
        """Return the number of channels without alpha."""
        return int(self.values_HWS.shape[2]) if self.space == "bands" else _CHANNELS[self.space]

    def __post_init__(self) -> None:
        number = self.colours + bool(self.opacity)
        assert self.values_HWS.ndim == 3, "height, width, samples"
        assert self.values_HWS.shape[2] == number, "as many samples as the space has"


@dataclass(kw_only=True)
class ArrayImage:
    """An image file whose header was read; it has the attributes of Pillow's object that the decoder uses.

    Args:
        width: Stored width in pixels.
        height: Stored height in pixels.
        mode: Pillow's name of the mode, or the nearest one.
        format: Name of the format.
        load: Function that decodes the samples.
        channels: Samples of each pixel as they are stored, alpha among them.
        load_bands: Function that decodes all of them, as ``bands``; None where the format has none but colours.
        orientation: Exif orientation.
        is_animated: Whether the file holds several pictures.
        info: ``icc_profile``, if the file has one.
    """

    width: int
    height: int
    mode: str
    format: str
    load: Callable[[], Samples]
    channels: int
    load_bands: Callable[[], Samples] | None = None
    orientation: int = 1
    is_animated: bool = False
    info: dict[str, Any] = field(default_factory=dict)


def samples_to_pixels(samples: Samples, *, channels: int, rule: DepthRule, profile: bytes = b"") -> Pixels:
    """Convert the samples of an image to 8-bit pixels by the rules of :mod:`finetune.data.color`.

    Returns:
        uint8 (H, W) for one channel, (H, W, 3) for three.
    """
    assert samples.space != "bands", "bands are no colours"
    colours = samples.colours
    values, opacity = samples.values_HWS[..., :colours], samples.values_HWS[..., colours:]
    pixels = scale_to_bytes(values, rule=rule, bits=samples.bits)
    if samples.white_is_zero:
        pixels = 255 - pixels
    if samples.opacity:
        pixels = np.concatenate([pixels, scale_to_bytes(opacity, bits=samples.bits)], axis=2)
    mode = _MODES[samples.space, samples.opacity]
    height, width = pixels.shape[:2]
    image = Image.frombuffer(mode, (width, height), np.ascontiguousarray(pixels), "raw", mode, 0, 1)
    if mode in ("La", "RGBa"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    if profile and samples.space != "grey":
        image.info["icc_profile"] = profile
    return to_pixels(image, channels=channels)


def bands_to_pixels(samples: Samples, *, rule: DepthRule) -> Pixels:
    """Scale all bands alike to 8 bits, uint8 (H, W, number of bands)."""
    pixels = scale_to_bytes(samples.values_HWS, rule=rule, bits=samples.bits)
    return 255 - pixels if samples.white_is_zero else pixels
