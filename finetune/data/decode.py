"""Decodes image files to 8-bit pixels: what a viewer shows, upright, in one or three channels; or all channels as stored.

The first bytes of a file decide its format, not its name. Pillow reads the header and decodes; its modes are converted to 8
bits by the rules of :mod:`finetune.data.color`. A JPEG at least twice as large as needed is decoded at a half, a quarter or an
eighth of its size (the format's own scaled decoding). Of animations and files of several pages, the first picture is used.

A damaged file whose pixels would not be those that were stored is refused: a JPEG that libjpeg would silently repair
(:mod:`finetune.data.jpeg`), and a PNG with a wrong checksum (:mod:`finetune.data.png_checksums`).

In processes that have loaded torch, lossy WebP is decoded by torchvision: a fifth to a quarter faster, with equal pixels.
"""

import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from finetune.counted import counted
from finetune.data.array_image import ArrayImage, Samples, bands_to_pixels, samples_to_pixels
from finetune.data.color import (
    HIGH_DEPTHS,
    DepthRule,
    HighDepth,
    Pixels,
    Range,
    check_high_depth,
    check_range,
    is_srgb,
    to_pixels,
)
from finetune.data.deep_colour import deep_samples, is_deep_colour, mode_of
from finetune.data.dicom import open_dicom
from finetune.data.image_file import CONVERT, MAX_PIXELS, UnreadableImage, read_image_file, sniff, what_instead
from finetune.data.jpeg import ColorSpace, DamagedJpegError, UnsupportedJpegError, decode_jpeg, is_complete
from finetune.data.libtiff_messages import refusing_damage
from finetune.data.npy import open_npy
from finetune.data.png_checksums import check_png
from finetune.data.tiff import check_tiff, is_camera_raw, mend_palette, open_by_tifffile, pillow_reads
from finetune.data.tiff import stored_channels as stored_in_tiff
from finetune.errors import first_line
from finetune.plain import Json

if TYPE_CHECKING:  # the ONNX engine decodes without torch
    from torch import Tensor

# Pillow warns about damaged metadata; damaged pixels raise. Set once, because a filter per call is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Pillow's classes are called directly: `Image.open` would apply its own pixel limit, a global of the whole process, and
# would try every plugin on a file that is not an image.
# The classes for HEIF and AVIF are in libraries that may be missing (`_box_opener`).
_OPENERS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

# an image file whose header was read
Opened = ImageFile.ImageFile | ArrayImage

# channels of colour with transparency, or of CMYK; of more, fewer pixels fit
_MOST_OF_A_PIXEL = 4

_RANGES = ("integer_range", "float_range")

# messages of decoders about whole files of kinds that they do not read, and what such a file is
_UNSUPPORTED = (
    (re.compile(r"cannot handle (12|16)-bit layers"), "a JPEG of {} bits"),
    # JPEG, PNG and CMYK inside
    (re.compile(r"Unsupported BMP compression \((4|5|11|12|13)\)"), "a BMP of the compression {}"),
    (re.compile(r"Unsupported BMP (bitfields layout)"), "a BMP of an unusual {}"),
)
# messages of Pillow that mean nothing to a user
_CLEARER = {"not identified by this driver": "its header gives no size"}
_END_OF_JPEG = b"\xff\xd9"
_LOSSY_WEBP = b"VP8 "
_ORIENTATION_TAG = 0x0112
# Exif orientation (CIPA DC-008): axes of the stored (H, W) to reverse, and whether to swap them afterwards
_TURNS: dict[int, tuple[tuple[int, ...], bool]] = {
    2: ((1,), False),
    3: ((0, 1), False),
    4: ((0,), False),
    5: ((), True),
    6: ((0,), True),
    7: ((0, 1), True),
    8: ((1,), True),
}


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How image files become pixels.

    Args:
        channels: Number of channels: 1 for grey, 3 for colour. Any other number takes the channels of a file as they are
            stored, and the file must have as many.
        max_pixels: Largest number of pixels; larger images are refused before they are decoded.
        high_depth: Rule that scales more than 8 bits to 8, see :mod:`finetune.data.color`.
        integer_range: Values that become black and white, for integers of more than 8 bits; None for the range of the type.
        float_range: The same for floating point; None chooses for each image.

    Raises:
        UserError: There is no such rule, or a range is invalid.
    """

    channels: int = 3
    max_pixels: int = MAX_PIXELS
    high_depth: HighDepth = "full"
    integer_range: Range | None = None
    float_range: Range | None = None

    def __post_init__(self) -> None:
        check_high_depth(self.high_depth)
        for key in _RANGES:
            object.__setattr__(self, key, check_range(getattr(self, key), name=f"data.{key}"))

    @property
    def rule(self) -> DepthRule:
        """Return the rule for more than 8 bits."""
        return DepthRule(high_depth=self.high_depth, integers=self.integer_range, floats=self.float_range)

    def to_plain(self) -> dict[str, Json]:
        """Return the options that do not depend on the network, as bundles, exports and embeddings record them in JSON.

        Ranges are included only if the data set has images of high bit depth.
        """
        ranges: dict[str, Json] = {key: list(value) for key in _RANGES if (value := getattr(self, key)) is not None}
        return {"max_pixels": self.max_pixels, "high_depth": self.high_depth, **ranges}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any], *, channels: int) -> "DecodeOptions":
        """Return the options that :meth:`to_plain` recorded in a file, which somebody else may have written.

        Raises:
            ValueError: A key is missing or unknown, or a value is out of range.
        """
        max_pixels, high_depth = values.get("max_pixels"), values.get("high_depth")
        sound = type(max_pixels) is int and max_pixels > 0 and high_depth in HIGH_DEPTHS
        if not sound or set(values) - set(_RANGES) != {"max_pixels", "high_depth"}:
            raise ValueError("max_pixels or high_depth: out of range")
        return cls(channels=channels, **values)


def decode_file(path: str, options: DecodeOptions, *, min_side: int | None = None) -> Pixels:
    """Read and decode an image file.

    Args:
        path: Path of the file.
        options: Channels, limits and rules.
        min_side: Fewest pixels of the shorter side; a JPEG may be decoded smaller than it is, down to this. None decodes
            the full size.

    Returns:
        uint8 (H, W, channels), upright. Where an image was turned, its memory may be laid out by columns.

    Raises:
        UnreadableImage: The file is missing, empty, damaged, truncated, too large, not an image, or has other channels.
    """
    data = read_image_file(path, max_pixels=options.max_pixels)
    return decode_bytes(data, options, path=path, min_side=min_side)


def decode_bytes(data: bytes | bytearray, options: DecodeOptions, *, path: str, min_side: int | None = None) -> Pixels:
    """Decode the bytes of a file as :func:`decode_file` does; ``path`` appears in messages only."""
    return decode_opened(open_image(data, path=path), options, path=path, min_side=min_side)


def decode_to_show(path: str, options: DecodeOptions, *, min_side: int | None = None) -> Pixels:
    """Decode a file for a picture of it, uint8 (H, W, 3), or of bands (H, W, all of them); see :func:`decode_file`."""
    data = read_image_file(path, max_pixels=options.max_pixels)
    image = open_image(data, path=path)
    channels = stored_channels(image) if image.mode.startswith("bands") else 3
    return decode_opened(image, replace(options, channels=channels), path=path, min_side=min_side)


def decode_image(path: str, *, channels: int, min_side: int | None = None) -> "Tensor":
    """Decode a file to uint8 (channels, H, W) with the default limits and rules; see :func:`decode_file`."""
    return to_tensor(decode_file(path, DecodeOptions(channels=channels), min_side=min_side))


def to_tensor(pixels_HWC: Pixels) -> "Tensor":
    """Return pixels as a tensor of shape (C, H, W), as views and networks take them.

    The memory is shared and keeps the order (H, W, C), in which decoders write, Pillow reads and torch resizes fastest.
    """
    import torch

    pixels = torch.from_numpy(pixels_HWC)
    return pixels[..., 0].unsqueeze(0) if pixels.shape[2] == 1 else pixels.permute(2, 0, 1)


def open_image(data: bytes | bytearray, *, path: str) -> Opened:
    """Read the header of a file in memory; the object has its format, mode and size, but no pixels yet.

    Raises:
        UnreadableImage: The bytes are not an image, or the header is damaged.
    """
    if not data:
        raise UnreadableImage(path, "The file is empty.")
    kind = sniff(data)
    if kind is None:
        raise UnreadableImage(path, what_instead(data))
    with _naming_damage(path):
        if kind == "TIFF":
            return _open_tiff(data, path)
        if kind == "DICOM":
            return open_dicom(data, path=path)
        if kind == "NPY":
            return open_npy(data, path=path)
        opener = _OPENERS[kind] if kind in _OPENERS else _box_opener(kind, path)
        return opener(BytesIO(data))


def _box_opener(kind: str, path: str) -> Callable[[BytesIO], ImageFile.ImageFile]:
    """Return what opens HEIF or AVIF.

    Raises:
        UnreadableImage: The library for it is not installed.
    """
    if kind == "AVIF":
        from PIL.AvifImagePlugin import AvifImageFile

        if not features.check("avif"):
            raise UnreadableImage(
                path, f"It is an AVIF image, and the installed Pillow was built without AVIF. {CONVERT}"
            )
        return AvifImageFile
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnreadableImage(
            path,
            "It is a HEIC image. Install its decoder with: pip install 'stagewise-finetune[heif]', or convert the file with "
            "ImageMagick (magick FILE FILE.jpg).",
        ) from None
    opener: Callable[[BytesIO], ImageFile.ImageFile] = HeifImageFile
    return opener


def _open_tiff(data: bytes | bytearray, path: str) -> Opened:
    try:
        image = TiffImagePlugin.TiffImageFile(BytesIO(data))
    except Exception as error:
        # a mode or compression that Pillow's tables lack; without tifffile, the message names it
        lacks_kind = isinstance(error.__cause__, KeyError)
        if lacks_kind or importlib.util.find_spec("tifffile"):
            return open_by_tifffile(data, path=path)
        raise
    if is_camera_raw(image):
        raise UnreadableImage(path, f"It is a camera's raw file; only its preview could be read. {CONVERT}")
    return image if pillow_reads(image) else open_by_tifffile(data, path=path)


def decode_opened(image: Opened, options: DecodeOptions, *, path: str, min_side: int | None = None) -> Pixels:
    """Decode an image from :func:`open_image`, as :func:`decode_file` does; this works once per opened image."""
    _check_channels(image, options.channels, path)
    _check_size(image, options.max_pixels, path)
    with _naming_damage(path):
        _check_stored_bytes(image, path)
        if options.channels not in (1, 3):
            pixels = bands_to_pixels(_stored_samples(image, path), rule=options.rule)
        elif isinstance(image, ArrayImage):
            pixels = _pixels_of(image.load(), image, options)
        elif isinstance(image, JpegImagePlugin.JpegImageFile):
            pixels = _decode_jpeg(image, options, _scale_of(image, min_side))
        elif is_deep_colour(image) and (options.rule.narrows_integers or _has_clear_colour(image)):
            pixels = _decode_deep_colour(image, options)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                return pixels  # upright already
        else:
            lossy = _decode_lossy_webp(image, options.channels)
            pixels = _decode_with_pillow(image, options) if lossy is None else lossy
        # read after loading: Pillow rotates a TIFF while loading it and removes the tag
        return _upright(pixels, orientation_of(image))


def stored_channels(image: Opened) -> int:
    """Return the number of channels of an opened file as it is stored, alpha among them."""
    if isinstance(image, ArrayImage):
        return image.channels
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return stored_in_tiff(image)
    with_alpha = {"LA": 2, "RGBA": 4}
    mode = mode_of(image)
    return with_alpha.get(mode, 1 if mode.partition(";")[0] in ("1", "L", "I", "F") else 3)


def _check_channels(image: Opened, channels: int, path: str) -> None:
    """Refuse a file that cannot be read as so many channels.

    Raises:
        UnreadableImage: It has another number of channels, or channels that are no colours.
    """
    stored = stored_channels(image)
    if channels in (1, 3):
        if image.mode.startswith("bands"):
            raise UnreadableImage(path, f"It has {stored} channels that are no colours, and {channels} are wanted.")
    elif stored != channels:
        raise UnreadableImage(path, f"It has {counted(stored, 'channel')}, and {channels} are wanted.")


def _stored_samples(image: Opened, path: str) -> Samples:
    """Decode all channels of a file as they are stored."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow multiplies or divides some modes by their alpha
        image = open_by_tifffile(_file_of(image).getvalue(), path=path)
    if isinstance(image, ArrayImage):
        assert image.load_bands is not None, "only formats with bands have so many channels"
        return image.load_bands()
    if is_deep_colour(image):
        return replace(deep_samples(image, _file_of(image).getvalue()), space="bands", opacity="")
    image.load()
    return Samples(values_HWS=np.asarray(image), space="bands", bits=8)


def decode_grey(image: Opened, *, max_pixels: int, path: str, min_side: int) -> Pixels:
    """Decode an opened image to grey, uint8 (H, W), for comparing pictures; of bands, to their mean."""
    bands = image.mode.startswith("bands")
    options = DecodeOptions(channels=stored_channels(image) if bands else 1, max_pixels=max_pixels)
    pixels_HWC = decode_opened(image, options, path=path, min_side=min_side)
    return np.rint(pixels_HWC.mean(axis=2)).astype(np.uint8) if bands else pixels_HWC[..., 0]


def _check_stored_bytes(image: Opened, path: str) -> None:
    """Refuse a file whose damage its decoder would not report.

    Raises:
        UnreadableImage: The end of a JPEG was never written.
        ValueError: A checksum of a PNG or TIFF is wrong.
    """
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        _check_end(path, _file_of(image))
    elif isinstance(image, PngImagePlugin.PngImageFile):
        with _file_of(image).getbuffer() as data:
            check_png(data)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        with _file_of(image).getbuffer() as data:
            check_tiff(image, data)


def numbers_of(image: Opened) -> npt.NDArray[Any] | None:
    """Return the sample values of a decoded image whose range is measured, of any shape; None for 0 to 255 at most."""
    if isinstance(image, ArrayImage):
        samples = image.load()
        ranged = samples.bits == 0 or samples.bits > 8 or samples.values_HWS.dtype.kind == "i"
        return samples.values_HWS[..., : samples.colours] if ranged else None
    deep = image.mode.startswith("I;16") or image.mode in ("I", "F")
    return np.asarray(image) if deep else None


def orientation_of(image: Opened) -> int:
    """Return the Exif orientation that an opened file states, 1 to 8; 1 where it is missing or damaged."""
    if isinstance(image, ArrayImage):
        return image.orientation
    is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    if is_jpeg and "exif" not in image.info:
        return 1
    try:
        if is_jpeg and "xmp" in image.info:
            # Pillow would take a missing tag from XMP, which viewers of JPEG files ignore
            exif = Image.Exif()
            exif.load(image.info["exif"])
        else:
            exif = image.getexif()
        value = exif.get(_ORIENTATION_TAG)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    except Exception:  # damaged metadata is no reason to lose the pixels
        return 1


def _scale_of(image: JpegImagePlugin.JpegImageFile, min_side: int | None) -> int:
    """Return the largest of 8, 4, 2 and 1 that divides a JPEG's size so that the shorter side keeps ``min_side`` pixels."""
    if min_side is None:
        return 1
    return next((scale for scale in (8, 4, 2) if min(image.size) >= scale * min_side), 1)


def _decode_jpeg(image: JpegImagePlugin.JpegImageFile, options: DecodeOptions, scale: int) -> Pixels:
    file = _file_of(image)
    first_scan, data = file.tell(), file.getvalue()
    profile = image.info.get("icc_profile") or b""
    plain = image.mode in ("L", "RGB") and is_srgb(profile)
    color_space: ColorSpace = "CMYK"
    if image.mode in ("L", "RGB"):
        color_space = "GRAY" if image.mode == "L" or (options.channels == 1 and not profile) else "RGB"
    size = None if scale == 1 else (-(-image.height // scale), -(-image.width // scale))
    try:
        pixels = decode_jpeg(data, color_space, size=size)
    except DamagedJpegError as error:
        raise ValueError(f"libjpeg reports: {error}") from None
    except UnsupportedJpegError:
        return _decode_rare_jpeg(image, options, scale)
    progressive = "progressive" in image.info
    # the header of a scan is 6 bytes and 2 for each of at most 4 components
    if not is_complete(data, first_scan=first_scan - 16, components=image.layers, progressive=progressive):
        raise ValueError("its last scans are missing")
    if plain and pixels.shape[2] == options.channels:
        return pixels
    if plain and options.channels == 3:
        return np.repeat(pixels, 3, axis=2)
    mode = image.mode
    if mode == "CMYK":
        pixels = 255 - pixels  # stored inverted, a convention of Adobe's programs
    elif mode == "L":
        pixels = pixels[..., 0]
    opened = Image.frombuffer(mode, (pixels.shape[1], pixels.shape[0]), pixels, "raw", mode, 0, 1)
    opened.info["icc_profile"] = profile
    return _as_array(opened, options)


def _decode_rare_jpeg(image: JpegImagePlugin.JpegImageFile, options: DecodeOptions, scale: int) -> Pixels:
    """Decode a JPEG that simplejpeg cannot decode, or raise Pillow's error."""
    size = (max(1, image.width // scale), max(1, image.height // scale))
    image.draft(image.mode, size)
    # pass all bytes at once: fed in blocks, the JPEG decoder would restart the row at the end of each block
    image.decodermaxblock = max(_file_of(image).getbuffer().nbytes, image.decodermaxblock)
    return _decode_with_pillow(image, options)


def _decode_with_pillow(image: ImageFile.ImageFile, options: DecodeOptions) -> Pixels:
    if isinstance(image, PngImagePlugin.PngImageFile):
        _scale_clear_level(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        with refusing_damage():
            image.load()
        mend_palette(image)
    else:
        image.load()
    return _as_array(image, options)


def _decode_deep_colour(image: ImageFile.ImageFile, options: DecodeOptions) -> Pixels:
    return _pixels_of(deep_samples(image, _file_of(image).getvalue()), image, options)


def _pixels_of(samples: Samples, image: Opened, options: DecodeOptions) -> Pixels:
    profile = image.info.get("icc_profile") or b""
    pixels = samples_to_pixels(samples, channels=options.channels, rule=options.rule, profile=profile)
    return pixels[..., None] if options.channels == 1 else pixels


def _has_clear_colour(image: ImageFile.ImageFile) -> bool:
    """Tell whether one colour of a PNG is transparent; of 16 bits, all of them must be compared."""
    return isinstance(image.info.get("transparency"), tuple)


def _scale_clear_level(image: PngImagePlugin.PngImageFile) -> None:
    """Convert the transparent value of a PNG of fewer than 8 bits to the scale of Pillow's pixels."""
    level, raw_mode = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if image.mode == "1" and level == 1:
        image.info["transparency"] = 255
    elif isinstance(level, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = level * {"L;2": 85, "L;4": 17}[raw_mode]


def _as_array(image: Image.Image, options: DecodeOptions) -> Pixels:
    pixels = to_pixels(image, channels=options.channels, rule=options.rule)
    return pixels[..., None] if options.channels == 1 else pixels


def _decode_lossy_webp(image: ImageFile.ImageFile, channels: int) -> Pixels | None:
    """Decode a single lossy WebP picture without transparency, profile or other metadata; return None for all else.

    torchvision 0.29 deprecated its public functions, which warn at every call; the operator that one of them wraps is
    called here while it exists.
    """
    if channels != 3 or "torch" not in sys.modules or not isinstance(image, WebPImagePlugin.WebPImageFile):
        return None
    buffer = _file_of(image).getbuffer()
    if buffer[12:16] != _LOSSY_WEBP:
        return None
    import torch
    from torchvision.io import ImageReadMode  # registers the operators

    try:
        pixels_CHW: Tensor = torch.ops.image.decode_webp(
            torch.frombuffer(buffer, dtype=torch.uint8), ImageReadMode.RGB.value
        )
    except (AttributeError, RuntimeError):
        return None
    pixels: Pixels = pixels_CHW.permute(1, 2, 0).numpy()
    return pixels


def _upright(pixels_HWC: Pixels, orientation: int) -> Pixels:
    """Turn the stored pixels upright, as the photographer saw the picture."""
    if orientation == 1:
        return pixels_HWC
    backwards, swapped = _TURNS[orientation]
    turned: Pixels
    if "torch" in sys.modules:  # 20 times as fast as NumPy, which copies the bytes of a reversed row one by one
        import torch

        turned = torch.from_numpy(pixels_HWC).flip(backwards).numpy()
    else:
        turned = np.ascontiguousarray(np.flip(pixels_HWC, backwards))
    return turned.swapaxes(0, 1) if swapped else turned


def _check_size(image: Opened, max_pixels: int, path: str) -> None:
    """Refuse an image that would take too much memory: more pixels than allowed, or more numbers than four of each of these.

    Raises:
        UnreadableImage: It is too large.
    """
    pixels, channels = image.width * image.height, stored_channels(image)
    if pixels > max_pixels or pixels * channels > _MOST_OF_A_PIXEL * max_pixels:
        size = f"It claims {image.width} x {image.height} pixels"
        limit = f"more than data.max_pixels={max_pixels}"
        too_large = (
            f"{size}, {limit}"
            if pixels > max_pixels
            else f"{size} of {channels} channels, {limit} allows at {_MOST_OF_A_PIXEL} channels each"
        )
        raise UnreadableImage(path, f"{too_large}. Raise the limit if the file is meant to be that large.")


def _check_end(path: str, jpeg: BytesIO) -> None:
    """Refuse a JPEG, read up to its first scan, whose rest was never written; decoders show that part grey, some silently."""
    with jpeg.getbuffer() as data:
        if any(data[-64:]):
            return
    if jpeg.getvalue().rfind(_END_OF_JPEG, jpeg.tell()) < 0:
        raise UnreadableImage(path, "Its end is filled with zero bytes, as after an interrupted download or copy.")


def _file_of(image: ImageFile.ImageFile) -> BytesIO:
    assert isinstance(image.fp, BytesIO), "opened from memory"
    return image.fp


def _unsupported(error: Exception) -> str:
    """Return what kind of file a decoder does not support, by its message; empty where the message tells of damage."""
    found = ((pattern.search(str(error)), words) for pattern, words in _UNSUPPORTED)
    return next((words.format(match[1]) for match, words in found if match), "")


@contextmanager
def _naming_damage(path: str) -> Iterator[None]:
    try:
        yield
    except (UnreadableImage, MemoryError):  # the machine's memory is no fault of the file
        raise
    except Exception as error:  # decoders raise many types on damaged files; a bare crash would not name the file
        if kind := _unsupported(error):
            raise UnreadableImage(path, f"It is {kind}, which is not supported. {CONVERT}") from error
        words = first_line(error).rstrip(".")
        raise UnreadableImage(path, f"It is damaged or cut short: {_CLEARER.get(words, words)}.") from error
