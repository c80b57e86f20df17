"""How the images of training were read, so that others are read alike."""

from pathlib import Path
from typing import Any

from finetune.bundle import MODEL_JSON, find_bundle, read_model_json
from finetune.data.color import HIGH_DEPTHS
from finetune.data.decode import MAX_PIXELS
from finetune.errors import UserError


def reading_of(run: str | Path) -> dict[str, Any]:
    """``max_pixels`` and ``high_depth`` of a bundle, as :func:`finetune.data.decode.decode_image` takes them.

    Args:
        run: A run folder or a bundle folder; one that does not tell was read by the defaults.

    Raises:
        UserError: There is no bundle, or a setting is out of range.
    """
    folder = find_bundle(run)
    data = read_model_json(folder)["data"]
    max_pixels, high_depth = data.get("max_pixels", MAX_PIXELS), data.get("high_depth", "full")
    if type(max_pixels) is not int or max_pixels < 1 or high_depth not in HIGH_DEPTHS:
        raise UserError(f"{folder / MODEL_JSON}: damaged. data.max_pixels or data.high_depth: out of range.")
    return {"max_pixels": max_pixels, "high_depth": high_depth}
