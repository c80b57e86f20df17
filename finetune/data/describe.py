"""Reads the header of an image file: format, mode, size, orientation, and whether it holds several pictures."""

import io
from typing import NamedTuple

from PIL import GifImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from finetune.data.color import is_srgb
from finetune.data.formats import sniff
from finetune.data.jpeg_header import read_jpeg_header
from finetune.data.openers import OPENERS
from finetune.data.orientation import orientation_of_exif, orientation_of_image

# the scan stores positions in these tuples
KINDS = ("", "JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF")
MODES = (
    *("", "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I;16", "I;16B", "I;16L", "I;16N", "I", "F"),
)

_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_CAN_HOLD_SEVERAL = (
    GifImagePlugin.GifImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
)


class Description(NamedTuple):
    """The fields of a header; width and height are as stored, before the orientation is applied."""

    kind: int = 0
    mode: int = 0
    width: int = 0
    height: int = 0
    orientation: int = 1
    several: bool = False
    profile: bool = False


def describe(data: bytearray) -> Description:
    """Read a header; fields that cannot be read keep their defaults (decoding gives the reason)."""
    kind = sniff(data)
    if kind is None:
        return Description()
    number = KINDS.index(kind)
    header = read_jpeg_header(data) if kind == "JPEG" else None
    if header is not None:
        return Description(
            kind=number,
            mode=MODES.index(_JPEG_MODES.get(header.components, "")),
            width=header.width,
            height=header.height,
            orientation=orientation_of_exif(header.exif),
            profile=bool(header.icc) and not is_srgb(header.icc),
        )
    try:
        with io.BytesIO(data) as file:
            image = OPENERS[kind](file)
            return Description(
                kind=number,
                mode=MODES.index(image.mode) if image.mode in MODES else 0,
                width=image.width,
                height=image.height,
                orientation=orientation_of_image(image),
                several=isinstance(image, _CAN_HOLD_SEVERAL) and image.is_animated,
                profile=not is_srgb(image.info.get("icc_profile") or b""),
            )
    except Exception:  # plugins raise many types on damaged files; decoding the same bytes reports the reason
        return Description(kind=number)
