"""How to load a trained model in each client, as Markdown with runnable code."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.export.client import LibraryClient
from finetune.export.formats import FORMATS
from finetune.input_spec import InputSpec

_IMAGE = """\
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")
"""
_DEEP_IMAGE = """\
import numpy as np
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("photo.png"))
{scaling}image = image.convert("{mode}")
"""
_BANDS = """\
import numpy as np

image = np.load("tile.npy")  # uint8 (H, W, {channels}); {scaled}
"""
# more than 8 bits, scaled by the range of the training images
_SCALING = """\
# Pillow has read colour of 16 bits as its upper eight: convert such files to 8 bits first
if {condition}:
    numbers = np.asarray(image).astype(np.float64){clip}
    black, white = {range}
    image = Image.fromarray(np.floor((numbers - black) * 255 / (white - black) + 0.5).astype(np.uint8))
"""
_GREY = (
    "The model was trained on grey images. Convert to grey first, as below; the layout holds colour, so the grey channel is "
    'repeated by `.convert("RGB")`.\n'
)
_FINETUNE = """\
import finetune

model = finetune.load("{path}")  # uint8 images (B, C, H, W) of the size below to logits (B, K)
"""


def how_to_load(
    form: str, spec: InputSpec, *, path: str, reading: Mapping[str, Any] | None = None, multi_label: bool = False
) -> str:
    """Return the Markdown section for one client.

    Args:
        form: ``finetune``, or a format that has a snippet.
        spec: Input of the model.
        path: Path of the export.
        reading: How the run reads files; None for the defaults.
        multi_label: Whether an image may show several classes.
    """
    grey = spec.channels == 1
    chosen = FORMATS.get(form)
    repeated = grey and chosen is not None and issubclass(chosen.client, LibraryClient)
    snippet = _FINETUNE
    if chosen is not None:
        snippet = chosen.snippet_multi_label if multi_label else chosen.snippet
    code = snippet.format(
        image=_image(spec.channels, reading or {}), path=path, rgb='.convert("RGB")' if repeated else ""
    )
    caution = f"{chosen.caution}\n" if chosen is not None and chosen.caution else ""
    return f"## {form}\n\n{caution}{_GREY if repeated else ''}\n```python\n{code}```\n"


def _ends(numbers: Sequence[float]) -> str:
    return ", ".join(str(int(number)) if float(number).is_integer() else repr(number) for number in numbers)


def _image(channels: int, reading: Mapping[str, Any]) -> str:
    """Return the code that opens an image file as training did, as far as Pillow reads it; of other channels, an array."""
    if channels not in (1, 3):
        if reading.get("high_depth") == "stretch":
            scaled = "the smallest and largest value of each image as 0 and 255"
        else:
            ends = reading.get("integer_range") or reading.get("float_range")
            scaled = f"{_ends(ends)} in its file as 0 and 255" if ends else "as it was stored"
        return _BANDS.format(channels=channels, scaled=scaled)
    mode = "L" if channels == 1 else "RGB"
    if reading.get("high_depth") == "stretch":
        scaling = _SCALING.format(condition='image.mode[0] in "IF"', clip="", range="numbers.min(), numbers.max()")
        return _DEEP_IMAGE.format(mode=mode, scaling=scaling)
    scaling = "".join(
        _SCALING.format(condition=condition, clip=f".clip({_ends(chosen)})", range=_ends(chosen))
        for key, condition in (("integer_range", 'image.mode[0] == "I"'), ("float_range", 'image.mode == "F"'))
        if (chosen := reading.get(key))
    )
    return _DEEP_IMAGE.format(mode=mode, scaling=scaling) if scaling else _IMAGE.format(mode=mode)
