"""Pixels of every image of the odd corpus, or why it is refused."""

import importlib
import inspect
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.golden.case import Case, Place
from tests.golden.digests import array_digest, normalized

OPTIONS: dict[str, dict[str, Any]] = {
    "colour": {"channels": 3},
    "grey": {"channels": 1},
    "colour stretched": {"channels": 3, "high_depth": "stretch"},
    "grey stretched": {"channels": 1, "high_depth": "stretch"},
    "colour decoded smaller": {"channels": 3, "min_side": 6},
    "few pixels": {"channels": 3, "max_pixels": 900},
}


def decoder() -> Callable[..., npt.NDArray[np.uint8]]:
    """The function from a path to uint8 (channels, H, W) of whichever revision is installed.

    Raises:
        LookupError: It is at none of the known places; add its new one.
    """
    module = importlib.import_module("finetune.data.decode")
    if hasattr(module, "DecodeOptions"):
        # up to revision e2c5516 min_side had another name
        named = "min_side" if "min_side" in inspect.signature(module.decode_file).parameters else "at_least"

        def decode(path: str, *, min_side: int | None = None, **options: Any) -> npt.NDArray[np.uint8]:
            pixels_HWC = module.decode_file(path, module.DecodeOptions(**options), **{named: min_side})
            return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))

        return decode
    # up to revision 0d0bca8: a tensor, and the options one by one
    if hasattr(module, "decode_image"):
        return lambda path, **options: np.asarray(module.decode_image(path, **options).numpy())
    raise LookupError("no decoder in finetune.data.decode")


def _decoded(options: dict[str, Any], place: Place) -> dict[str, str]:
    decode, kept = decoder(), {}
    # Pillow warns of some files before it refuses them; as errors, as in tests, warnings would be the refusal
    warnings.simplefilter("ignore")
    for path in sorted(Path(place.work, "odd").iterdir()):
        try:
            kept[path.name] = array_digest(decode(str(path), **options))
        except Exception as error:
            kept[path.name] = normalized(str(error), place.places)
    return kept


def cases() -> list[Case]:
    """One for each set of options."""
    return [Case("decode", name, partial(_decoded, options)) for name, options in OPTIONS.items()]
