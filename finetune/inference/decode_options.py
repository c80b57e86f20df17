"""Options with which the training images were decoded, so that other images are decoded the same way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.bundle import MODEL_JSON, find_bundle, read_model_json
from finetune.data.decode import DecodeOptions
from finetune.errors import UserError


def decode_options_of(run: str | Path) -> DecodeOptions:
    """Return the options of a bundle.

    Args:
        run: Run folder or bundle folder; a bundle without these settings was trained with the defaults.

    Raises:
        UserError: There is no bundle, or a setting is out of range.
    """
    folder = find_bundle(run)
    model = read_model_json(folder)
    values = {key: model["data"].get(key, default) for key, default in DecodeOptions().to_plain().items()}
    # only data sets with images of high bit depth have these
    values |= {
        key: model["data"][key] for key in ("integer_range", "float_range") if model["data"].get(key) is not None
    }
    channels = model["model"]["input_spec"]["channels"]
    return recorded_options(values, channels=channels, name=str(folder / MODEL_JSON))


def recorded_options(values: Mapping[str, Any], *, channels: int, name: str) -> DecodeOptions:
    """Return the options that a file records.

    Args:
        values: What the file records.
        channels: Number of channels of the images.
        name: Name of the file, for messages.

    Raises:
        UserError: A setting is unknown or out of range.
    """
    try:
        return DecodeOptions.from_plain(values, channels=channels)
    except ValueError:
        raise UserError(
            f"{name}: damaged. data.max_pixels, data.high_depth or a range of numbers: out of range."
        ) from None
