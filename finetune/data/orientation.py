"""Exif orientation: reads how the camera was held and turns the image upright (CIPA DC-008, tag 0x0112)."""

from PIL import Image, ImageFile
from torch import Tensor

_TAG = 0x0112


def orientation_of_exif(exif: bytes) -> int:
    """Return the orientation in an Exif block; 1 where it is missing or damaged."""
    if not exif:
        return 1
    try:
        tags = Image.Exif()
        tags.load(exif)
        return _valid(tags.get(_TAG))
    except Exception:  # damaged metadata of any kind is no reason to lose the pixels
        return 1


def orientation_of_image(image: ImageFile.ImageFile) -> int:
    """Return the orientation that an opened file states; 1 where it is missing or damaged."""
    try:
        return _valid(image.getexif().get(_TAG))
    except Exception:  # damaged metadata of any kind is no reason to lose the pixels
        return 1


def upright(image_CHW: Tensor, orientation: int) -> Tensor:
    """Turn the pixels as stored into the picture as the photographer saw it."""
    if orientation >= 5:
        image_CHW = image_CHW.transpose(-2, -1)
    sides = {2: [-1], 3: [-2, -1], 4: [-2], 6: [-1], 7: [-2, -1], 8: [-2]}.get(orientation)
    return image_CHW.flip(sides) if sides else image_CHW


def _valid(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
