"""Settings with which the training images were read, so that other images are read the same way."""

from pathlib import Path
from typing import Any

from finetune.bundle import MODEL_JSON, find_bundle, read_model_json
from finetune.data.decode import DecodeOptions
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
    reading = {key: data.get(key, default) for key, default in DecodeOptions().reading().items()}
    check_reading(reading, name=str(folder / MODEL_JSON))
    return reading


def check_reading(reading: dict[str, Any], *, name: str) -> None:
    """Check that the reading settings of a file are valid for the decoder.

    Raises:
        UserError: A setting is unknown or out of range.
    """
    try:
        DecodeOptions.from_reading(reading, channels=3)
    except ValueError:
        raise UserError(f"{name}: damaged. data.max_pixels or data.high_depth: out of range.") from None
