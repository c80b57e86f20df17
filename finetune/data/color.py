"""Converts every Pillow mode to 8 bits in one or three channels, by stated rules.

- Transparency (an alpha channel, or a transparent colour) is composited over white.
- Palettes are looked up; bilevel images become 0 and 255.
- An embedded colour profile is converted to sRGB, unless it is damaged or changes no 8-bit value by more than two, whatever
  its name is; CMYK without a profile is converted by the plain formula. Grey of more than 8 bits ignores profiles.
- Grey from colour is the luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, which a JPEG file stores as Y.
- High bit depths are scaled by one range for the whole data set, which the scan measures
  (:mod:`finetune.data.depth_range`). Without one, ``full`` maps the range that the type allows to 0..255: for 16 bits
  0..65535. 32-bit integers and floating point declare no range: theirs is the smallest of 0..1 (floating point only),
  0..255 and 0..65535 that holds all values of the image, else the image's own minimum..maximum. ``stretch`` always maps the
  image's own minimum..maximum. Values outside the range become black or white; NaN counts as the minimum.

An image is converted one tile at a time, so the intermediate results, up to 40 bytes per pixel, exist for one tile only.
Apart from the image that Pillow holds and the returned pixels, memory does not grow with the image.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from finetune.errors import UserError, did_you_mean

HighDepth = Literal["full", "stretch"]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
HIGH_DEPTHS: tuple[str, ...] = get_args(HighDepth)

Pixels = npt.NDArray[np.uint8]
Range = tuple[float, float]

_TILE_PIXELS = 2**20
# largest difference of 8-bit values by rounding and between versions of sRGB
_SAME_COLOR = 2

_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def luma(image_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the grey of a colour image, (H, W), by the luma of ITU-R BT.601."""
    grey: npt.NDArray[np.uint8] = np.rint(image_HWC @ _LUMA).astype(np.uint8)
    return grey


@dataclass(frozen=True, kw_only=True)
class DepthRule:
    """How samples of more than 8 bits are scaled to 8 bits.

    Args:
        high_depth: ``full`` or ``stretch``.
        integers: Values that become black and white, for integers of more than 8 bits under ``full``; None for the
            range of the type.
        floats: The same for floating point; None chooses for each image.
    """

    high_depth: HighDepth = "full"
    integers: Range | None = None
    floats: Range | None = None

    @property
    def narrows_integers(self) -> bool:
        """Tell whether 16-bit integers are scaled by a range other than the full one."""
        return self.high_depth == "stretch" or self.integers not in (None, (0.0, 65535.0))


FULL = DepthRule()
# values up to 1% outside a range come from the writer's rounding or filtering
_TOLERANCE = 0.01


def to_pixels(image: Image.Image, *, channels: int, rule: DepthRule = FULL) -> Pixels:
    """Convert a loaded image to 8-bit pixels.

    Args:
        image: Loaded image of any mode.
        channels: Number of channels to return, 1 or 3.
        rule: Scaling rule for images of more than 8 bits.

    Returns:
        uint8 (H, W) for one channel, (H, W, 3) for three.
    """
    grey = channels == 1
    pixels = np.empty((image.height, image.width) if grey else (image.height, image.width, 3), np.uint8)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        scale = _scale_of((np.asarray(tile) for _, tile in _tiles(image)), rule)
        clear = image.info.get("transparency")  # PNG: one value may be transparent
        for place, tile in _tiles(image):
            numbers = np.asarray(tile)
            scaled = scale(numbers)
            if isinstance(clear, int):
                scaled[numbers == clear] = 255
            pixels[place] = scaled if grey else scaled[..., None]
        return pixels
    for place, tile in _tiles(image):
        pixels[place] = np.asarray(_in_mode(tile, "L" if grey else "RGB"))
    return pixels


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[slice, slice], Image.Image]]:
    """Yield tiles of at most a million pixels with their positions in the image."""
    width = min(image.width, _TILE_PIXELS)
    height = min(image.height, _TILE_PIXELS // width)
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            bottom, right = min(top + height, image.height), min(left + width, image.width)
            whole = (right - left, bottom - top) == image.size
            yield (slice(top, bottom), slice(left, right)), image if whole else image.crop((left, top, right, bottom))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an 8-bit image to ``L`` or ``RGB``."""
    profile = image.info.get("icc_profile") or b""
    if image.mode == "LAB":
        image = ImageCms.applyTransform(image, _from_lab()) or image
    elif image.has_transparency_data:
        image = _over_white(image)
    elif image.mode in ("P", "PA"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    return image if image.mode == mode else image.convert(mode)


def scale_to_bytes(values: npt.NDArray[Any], *, rule: DepthRule = FULL, bits: int = 16) -> Pixels:
    """Scale sample values of any range to 0..255, rounded to nearest.

    Args:
        values: Sample values.
        rule: Scaling rule.
        bits: Bits of an unsigned integer as the file declares them.

    >>> scale_to_bytes(np.array([0, 257, 65535], np.uint16)).tolist()
    [0, 1, 255]
    >>> scale_to_bytes(np.array([100, 200, 300], np.uint16), rule=DepthRule(high_depth="stretch")).tolist()
    [0, 128, 255]
    """
    return _scale_of([values], rule, bits)(values)


@dataclass(frozen=True)
class _Scale:
    """A linear map from sample values to 8-bit values.

    Args:
        black: Value that becomes 0.
        white: Value that becomes 255.
        low: Smallest finite value; it replaces NaN and minus infinity.
        high: Largest finite value; it replaces infinity.
    """

    black: float
    white: float
    low: float
    high: float

    def __call__(self, values: npt.NDArray[np.generic]) -> Pixels:
        if _is_16_bits(values.dtype):
            return _table_of_16_bits(self.black, self.white).take(values.astype(np.intp))
        numbers = np.nan_to_num(values.astype(np.float64), nan=self.low, posinf=self.high, neginf=self.low)
        return _scaled_to_bytes(numbers.clip(self.black, self.white), self.black, self.white)


def _scale_of(parts: Iterable[npt.NDArray[Any]], rule: DepthRule, bits: int = 16) -> _Scale:
    """Choose the scale for an image whose samples come in parts."""
    low, high = np.inf, -np.inf
    kind: np.dtype[Any] = np.dtype(np.float64)
    for part in parts:
        kind = part.dtype
        if kind.kind in "ub" and bits <= 8:
            return _Scale(0.0, 2.0**bits - 1, 0.0, 2.0**bits - 1)
        if rule.high_depth == "full":
            chosen = rule.floats if kind.kind == "f" else rule.integers
            if chosen is not None:
                return _Scale(*chosen, *chosen)
            if _is_16_bits(kind):
                return _Scale(0.0, 2.0**bits - 1, 0.0, 2.0**bits - 1)
        finite = part[np.isfinite(part)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        low = high = 0.0
    black, white = (low, high) if rule.high_depth == "stretch" else declared_range(low, high, floating=kind.kind == "f")
    return _Scale(black, white, low, high)


def declared_range(low: float, high: float, *, floating: bool) -> Range:
    """Return the smallest usual range that holds ``low`` to ``high``, or ``(low, high)`` if none does.

    >>> declared_range(0.0, 1.0001, floating=True)
    (0.0, 1.0)
    """
    slack = _TOLERANCE if floating else 0.0
    for top in (1.0, 255.0, 65535.0) if floating else (255.0, 65535.0):
        if -slack * top <= low and high <= top * (1 + slack):
            return 0.0, top
    return low, high


def _is_16_bits(kind: np.dtype[np.generic]) -> bool:
    return kind.kind == "u" and kind.itemsize == 2


@lru_cache(maxsize=16)
def _table_of_16_bits(black: float, white: float) -> Pixels:
    """Return the 8-bit value of each of the 65,536 sample values."""
    return _scaled_to_bytes(np.arange(2**16, dtype=np.float64).clip(black, white), black, white)


def _scaled_to_bytes(numbers: npt.NDArray[np.float64], black: float, white: float) -> Pixels:
    span = white - black
    # adding 0.5 and truncating rounds halves up; numpy's rounding would send 0.5 to 0 and 1.5 to 2
    scaled = (numbers - black) * 255 / span if span > 0 else np.zeros_like(numbers)
    return np.floor(scaled + 0.5).astype(np.uint8)


def check_high_depth(name: str) -> HighDepth:
    """Return the name of a high-depth rule if it exists.

    Raises:
        UserError: There is no such rule.
    """
    for rule in get_args(HighDepth):
        if name == rule:
            checked: HighDepth = rule
            return checked
    raise UserError(
        f"data.high_depth={name!r}: must be one of {', '.join(HIGH_DEPTHS)}.{did_you_mean(name, HIGH_DEPTHS)}"
    )


def check_range(value: object, *, name: str) -> Range | None:
    """Return a range as a pair, or None if none is given.

    Raises:
        UserError: The value is not two finite numbers, the smaller one first.
    """
    if value is None:
        return None
    numbers = tuple(value) if isinstance(value, (list, tuple)) else ()
    plain = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != 2 or not plain or not np.isfinite(numbers).all() or numbers[0] >= numbers[1]:
        raise UserError(f"{name}={value!r}: must be two numbers: the value of black, then a larger one for white.")
    return float(numbers[0]), float(numbers[1])


def is_srgb(profile: bytes) -> bool:
    """Tell whether a profile needs no conversion, because it declares sRGB or cannot be read."""
    return _profile(profile) is None


def _over_white(image: Image.Image) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("L" if grey else "RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    parsed = _profile(profile)
    if parsed is None:
        return image
    if image.mode == "YCbCr":
        image = image.convert("RGB")
    if _PROFILE_MODES.get(parsed.profile.xcolor_space) != image.mode:
        return image  # a profile for another kind of image; viewers ignore it too
    transform = _transform(profile, image.mode)
    return (ImageCms.applyTransform(image, transform) or image) if transform else image


@lru_cache(maxsize=256)
def _profile(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _PROFILE_MODES.get(parsed.profile.xcolor_space, "")
        return None if mode in ("RGB", "L") and _is_identity(parsed, mode) else parsed
    except (ImageCms.PyCMSError, OSError):
        return None


def _is_identity(profile: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Tell whether a profile's curves and primaries are those of sRGB, by converting a grid of colours."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    grid = np.concatenate([np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3), ramp])
    given = grid if mode == "RGB" else ramp
    image = Image.fromarray(np.ascontiguousarray(given[None] if mode == "RGB" else given[None, :, 0]))
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None, "not in place"
    return bool(np.abs(np.asarray(converted)[0].astype(np.int16) - given).max() <= _SAME_COLOR)


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    parsed = _profile(profile)
    assert parsed is not None, "called only for a profile that was read"
    try:
        return ImageCms.buildTransform(parsed, ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImageCms.PyCMSError:
        return None


@lru_cache(maxsize=1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
