"""Settings with which the training images were read, so that other images are read the same way."""

from pathlib import Path
from typing import Any

from finetune.bundle import MODEL_JSON, find_bundle, read_model_json
from finetune.data.color import HIGH_DEPTHS
from finetune.data.image_file import MAX_PIXELS
from finetune.errors import UserError


def reading_of(run: str | Path) -> dict[str, Any]:
    """Return ``max_pixels`` and ``high_depth`` of a bundle, the arguments of :func:`finetune.data.decode.decode_image`.

    Args:
        run: Run folder or bundle folder; a bundle without these settings was trained with the defaults.

    Raises:
        UserError: There is no bundle, or a setting is out of range.
    """
    folder = find_bundle(run)
    data = read_model_json(folder)["data"]
    reading = {"max_pixels": data.get("max_pixels", MAX_PIXELS), "high_depth": data.get("high_depth", "full")}
    check_reading(reading, name=str(folder / MODEL_JSON))
    return reading


def check_reading(reading: dict[str, Any], *, name: str) -> None:
    """Check that the reading settings of a file are valid for the decoder.

    Raises:
        UserError: A setting is unknown or out of range.
    """
    max_pixels, high_depth = reading.get("max_pixels"), reading.get("high_depth")
    sound = type(max_pixels) is int and max_pixels > 0 and high_depth in HIGH_DEPTHS
    if not sound or set(reading) != {"max_pixels", "high_depth"}:
        raise UserError(f"{name}: damaged. data.max_pixels or data.high_depth: out of range.")
