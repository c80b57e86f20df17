"""Image files to pixels without PyTorch: the rules of :mod:`finetune.data.decode`, by Pillow alone."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.color import HighDepth, to_pixels
from finetune.data.formats import sniff, what_instead
from finetune.data.image_file import MAX_PIXELS as MAX_PIXELS
from finetune.data.image_file import Refused, read_image_file
from finetune.data.jpeg_header import read_jpeg_header
from finetune.data.openers import OPENERS
from finetune.errors import UserError

_ORIENTATION_TAG = 0x0112
_TURNED = {2: (False, False, True), 3: (False, True, True), 4: (False, True, False), 5: (True, False, False)}
_TURNED |= {6: (True, False, True), 7: (True, True, True), 8: (True, True, False)}


class UnreadableFile(UserError):  # noqa: N818 (it names the thing, as the message does)
    """A file that cannot be read as an image.

    Args:
        reason: Why.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def decode_to_numpy(
    path: str,
    *,
    channels: int,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    high_depth: HighDepth = "full",
) -> npt.NDArray[np.uint8]:
    """Read an image file.

    Args:
        path: The file.
        channels: 1 for grey, 3 for colour.
        at_least: A JPEG file may be read at a half, a quarter or an eighth, to no fewer pixels of the shorter side.
        max_pixels: Larger images are refused before they are decoded.
        high_depth: How more than 8 bits become 8, see :mod:`finetune.data.color`.

    Returns:
        uint8 (H, W, channels), upright.

    Raises:
        UnreadableFile: The file is missing, empty, damaged, too large or no image.
    """
    try:
        data = read_image_file(path, max_pixels=max_pixels)
    except Refused as error:
        raise UnreadableFile(error.reason) from None
    return bytes_to_numpy(data, channels=channels, at_least=at_least, max_pixels=max_pixels, high_depth=high_depth)


def bytes_to_numpy(
    data: bytes | bytearray,
    *,
    channels: int,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    high_depth: HighDepth = "full",
) -> npt.NDArray[np.uint8]:
    """As :func:`decode_to_numpy`, for the bytes of a file that were read already."""
    if not data:
        raise UnreadableFile("The file is empty.")
    kind = sniff(data)
    if kind is None:
        raise UnreadableFile(what_instead(data))
    try:
        return _decode(data, kind, channels, at_least, max_pixels, high_depth)
    except UnreadableFile:
        raise
    except Exception as error:  # the decoders raise many types on damaged files
        text = (str(error).strip().rstrip(".") or type(error).__name__).splitlines()[0]
        raise UnreadableFile(f"It is damaged or cut short: {text}.") from error


def _decode(
    data: bytes | bytearray, kind: str, channels: int, at_least: int | None, max_pixels: int, high_depth: HighDepth
) -> npt.NDArray[np.uint8]:
    if kind == "JPEG":
        header = read_jpeg_header(bytearray(data))
        if header is not None and not header.complete and not any(data[-64:]):
            raise UnreadableFile("Its end is filled with zero bytes, as after an interrupted download or copy.")
    with io.BytesIO(data) as file:
        image = OPENERS[kind](file)
        if image.width * image.height > max_pixels:
            raise UnreadableFile(
                f"It claims {image.width} x {image.height} pixels, more than data.max_pixels={max_pixels}."
            )
        if kind == "JPEG":
            smallest = min(image.size)
            scale = next((s for s in (8, 4, 2) if at_least is not None and smallest >= s * at_least), 1)
            size = (max(1, image.width // scale), max(1, image.height // scale))
            image.draft("L" if channels == 1 and not image.info.get("icc_profile") else image.mode, size)
        image.load()
        pixels = to_pixels(image, channels=channels, high_depth=high_depth)
        swap, down, right = _TURNED.get(_orientation(image), (False, False, False))
    pixels = pixels[..., None] if channels == 1 else pixels
    pixels = pixels.swapaxes(0, 1) if swap else pixels
    pixels = pixels[::-1] if down else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if right else pixels)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata is no reason to lose the pixels
        return 1
