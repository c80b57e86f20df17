"""Decodes an image file to a ``uint8 (C, H, W)`` tensor: what a viewer shows, in one or three channels.

The first bytes of the file decide its format, not its name. Plain JPEG and WebP go to torchvision's decoders; Pillow
decodes a JPEG file at least twice as large as needed at a half, a quarter or an eighth (the format's own scaled
decoding); everything else goes to Pillow and :mod:`finetune.data.color`. Where torchvision fails, Pillow tries.
Animations and files of several pages give their first picture.
"""

import io
import warnings
from typing import Any

import torch
from torch import Tensor

from finetune.data import fast_decoders
from finetune.data.color import HighDepth, is_srgb, to_pixels
from finetune.data.formats import sniff, what_instead
from finetune.data.image_file import MAX_PIXELS as MAX_PIXELS
from finetune.data.image_file import Refused, read_image_file
from finetune.data.jpeg_header import JpegHeader, read_jpeg_header
from finetune.data.openers import OPENERS
from finetune.data.orientation import orientation_of_exif, orientation_of_image, upright
from finetune.errors import UserError

# Pillow warns about damaged metadata; damaged pixels raise. Set once, because a filter per call is not thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(UserError):  # noqa: N818 (it names the thing, as the message does)
    """A file that cannot be read as an image.

    Args:
        path: Path of the file.
        reason: Reason, as a sentence for the user.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: cannot be read as an image. {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        # unpickling an exception from a worker process rebuilds it from its arguments, not from its message
        return type(self), (self.path, self.reason)


def decode_image(
    path: str,
    *,
    channels: int,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    high_depth: HighDepth = "full",
) -> Tensor:
    """Read and decode an image file.

    Args:
        path: Path of the file.
        channels: Number of channels, 1 for grey, 3 for colour.
        at_least: Fewest pixels of the shorter side; the image may be decoded smaller than it is, down to this. None
            decodes the full size.
        max_pixels: Largest number of pixels; larger images are refused before they are decoded.
        high_depth: Rule that turns more than 8 bits into 8, see :mod:`finetune.data.color`.

    Returns:
        uint8 (channels, H, W), upright. It may be laid out channels last.

    Raises:
        UnreadableImage: The file is missing, empty, damaged, truncated, too large or not an image.
    """
    return decode_bytes(
        read_file(path, max_pixels=max_pixels),
        path=path,
        channels=channels,
        at_least=at_least,
        max_pixels=max_pixels,
        high_depth=high_depth,
    )


def decode_bytes(
    data: bytearray,
    *,
    path: str,
    channels: int,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    high_depth: HighDepth = "full",
) -> Tensor:
    """Decode the bytes of a file as :func:`decode_image` does; ``path`` appears in messages only."""
    kind = sniff(data)
    if kind is None:
        raise UnreadableImage(path, what_instead(data))
    try:
        if kind == "JPEG":
            return _decode_jpeg(path, data, channels, at_least, max_pixels)
        if kind == "WebP" and channels == 3 and data[12:16] == b"VP8 ":
            width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
            _check_size(path, width, height, max_pixels)
            simple = fast_decoders.webp(data)
            if simple is not None:
                return simple
        return _decode_with_pillow(path, kind, data, channels, at_least, max_pixels, high_depth, exif=None)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise many types on damaged files; a bare crash would not name the file
        raise UnreadableImage(path, f"It is damaged or cut short: {_words(error)}.") from error


def read_file(path: str, *, max_pixels: int = MAX_PIXELS) -> bytearray:
    """Return the bytes of a file that starts like an image.

    Raises:
        UnreadableImage: As :func:`finetune.data.image_file.read_image_file` refuses it.
    """
    try:
        return read_image_file(path, max_pixels=max_pixels)
    except Refused as error:
        raise UnreadableImage(path, error.reason) from None


def _decode_jpeg(path: str, data: bytearray, channels: int, at_least: int | None, max_pixels: int) -> Tensor:
    header = read_jpeg_header(data)
    if header is None:
        return _decode_with_pillow(path, "JPEG", data, channels, at_least, max_pixels, "full", exif=None)
    _check_size(path, header.width, header.height, max_pixels)
    if not header.complete and not any(data[-64:]):
        raise UnreadableImage(path, "Its end is filled with zero bytes, as after an interrupted download or copy.")
    if not _shrinks(header, at_least) and _is_plain(header):
        image = fast_decoders.jpeg(data, channels=channels)
        if image is not None:
            return upright(image, orientation_of_exif(header.exif))
    return _decode_with_pillow(path, "JPEG", data, channels, at_least, max_pixels, "full", exif=header.exif)


def _shrinks(header: JpegHeader, at_least: int | None) -> bool:
    return at_least is not None and min(header.width, header.height) >= 2 * at_least


def _is_plain(header: JpegHeader) -> bool:
    """Tell whether torchvision's decoder gives the right colours: 8 bits, grey or YCbCr, no profile to apply."""
    return (
        header.precision == 8
        and (header.components == 1 or (header.components == 3 and header.adobe_transform in (None, 1)))
        and (not header.icc or is_srgb(header.icc))
    )


def _decode_with_pillow(
    path: str,
    kind: str,
    data: bytearray,
    channels: int,
    at_least: int | None,
    max_pixels: int,
    high_depth: HighDepth,
    exif: bytes | None,
) -> Tensor:
    with io.BytesIO(data) as file:
        image = OPENERS[kind](file)
        _check_size(path, *image.size, max_pixels)
        if kind == "JPEG":
            smallest = min(image.size)
            scale = next((s for s in (8, 4, 2) if at_least is not None and smallest >= s * at_least), 1)
            size = (max(1, image.width // scale), max(1, image.height // scale))
            image.draft("L" if channels == 1 and not image.info.get("icc_profile") else image.mode, size)
            # pass all bytes at once: fed in blocks, the JPEG decoder would restart the row at the end of each block
            image.decodermaxblock = max(len(data), image.decodermaxblock)
        image.load()
        orientation = orientation_of_exif(exif) if exif is not None else orientation_of_image(image)
        pixels = torch.from_numpy(to_pixels(image, channels=channels, high_depth=high_depth))
    return upright(pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1), orientation)


def _check_size(path: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableImage(
            path,
            f"It claims {width} x {height} pixels, more than data.max_pixels={max_pixels}. "
            "Raise the limit if the file is meant to be so large.",
        )
    if width * height == 0:
        raise UnreadableImage(path, f"It claims {width} x {height} pixels.")


def _words(error: Exception) -> str:
    text = str(error).strip().rstrip(".") or type(error).__name__
    return text.splitlines()[0]
