"""Every mode that Pillow knows to 8 bits in one or three channels, by stated rules.

- Transparency (an alpha channel, or a transparent colour) is laid over white.
- Palettes are looked up; bilevel images become 0 and 255.
- An embedded colour profile is followed to sRGB, unless it is sRGB already or damaged; CMYK without one is converted
  by the plain formula. Grey of more than 8 bits ignores profiles.
- Grey from colour is the luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B: what a JPEG file stores as Y.
- High bit depths are scaled, never clipped. ``full``: the range that the numbers can have becomes 0..255. That is
  0..65535 for 16 bits; for 32-bit integers and floating point, which declare no range, the smallest of 0..1 (floating
  point only), 0..255, 0..65535 that holds all values of the image, else its own minimum..maximum. ``stretch``: always
  the image's own minimum..maximum, for instruments that use few of their 16 bits. NaN counts as the minimum.
"""

import io
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from finetune.errors import UserError, did_you_mean

HighDepth = Literal["full", "stretch"]
HIGH_DEPTHS: tuple[str, ...] = get_args(HighDepth)

Pixels = npt.NDArray[np.uint8]

_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_pixels(image: Image.Image, *, channels: int, high_depth: HighDepth = "full") -> Pixels:
    """The pixels of a loaded image.

    Args:
        image: Any mode.
        channels: 1 or 3.
        high_depth: The rule for more than 8 bits.

    Returns:
        uint8 (H, W) for one channel, (H, W, 3) for three.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        grey = scale_to_bytes(np.asarray(image), high_depth=high_depth)
        return grey if channels == 1 else np.repeat(grey[..., None], 3, axis=2)
    profile = image.info.get("icc_profile") or b""
    if image.mode == "LAB":
        image = ImageCms.applyTransform(image, _from_lab()) or image
    elif image.has_transparency_data:
        image = _over_white(image)
    elif image.mode in ("P", "PA"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    mode = "L" if channels == 1 else "RGB"
    return np.array(image if image.mode == mode else image.convert(mode))


def scale_to_bytes(values: npt.NDArray[np.generic], *, high_depth: HighDepth = "full") -> Pixels:
    """Numbers of any range to 0..255, rounded to nearest.

    >>> scale_to_bytes(np.array([0, 257, 65535], np.uint16)).tolist()
    [0, 1, 255]
    >>> scale_to_bytes(np.array([100, 200, 300], np.uint16), high_depth="stretch").tolist()
    [0, 128, 255]
    """
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    numbers = np.nan_to_num(numbers, nan=low, posinf=high, neginf=low)
    if high_depth == "full":
        if values.dtype == np.uint16:
            low, high = 0.0, 65535.0
        else:
            ranges = (1.0, 255.0, 65535.0) if np.issubdtype(values.dtype, np.floating) else (255.0, 65535.0)
            fitting = [top for top in ranges if low >= 0 and high <= top]
            low, high = (0.0, fitting[0]) if fitting else (low, high)
    span = high - low
    # adding a half and cutting rounds halves up; numpy's own rounding would send 0.5 to 0 and 1.5 to 2
    scaled = (numbers - low) * 255 / span if span > 0 else np.zeros_like(numbers)
    return np.floor(scaled + 0.5).astype(np.uint8)


def check_high_depth(name: str) -> HighDepth:
    """The name itself.

    Raises:
        UserError: There is no such rule.
    """
    for rule in get_args(HighDepth):
        if name == rule:
            found: HighDepth = rule
            return found
    raise UserError(
        f"data.high_depth={name!r}: must be one of {', '.join(HIGH_DEPTHS)}.{did_you_mean(name, HIGH_DEPTHS)}"
    )


def is_srgb(profile: bytes) -> bool:
    """Whether following a profile changes nothing: it says that it is sRGB, or cannot be read."""
    return _profile(profile) is None


def _over_white(image: Image.Image) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("L" if grey else "RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    found = _profile(profile)
    if found is None:
        return image
    if image.mode == "YCbCr":
        image = image.convert("RGB")
    if _PROFILE_MODES.get(found.profile.xcolor_space) != image.mode:
        return image  # a profile for another kind of image; viewers ignore it too
    transform = _transform(profile, image.mode)
    return (ImageCms.applyTransform(image, transform) or image) if transform else image


@lru_cache(maxsize=256)
def _profile(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return None if "sRGB" in ImageCms.getProfileDescription(parsed) else parsed
    except (ImageCms.PyCMSError, OSError):
        return None


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    parsed = _profile(profile)
    assert parsed is not None, "asked only for a profile that was read"
    try:
        return ImageCms.buildTransform(parsed, ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImageCms.PyCMSError:
        return None


@lru_cache(maxsize=1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
