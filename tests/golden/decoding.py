"""Pixels of every image of the odd corpus, or why it is refused."""

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.golden.case import Case, Place
from tests.golden.digests import array_digest, normalized

# where the decoder is and was: the first that a revision has is taken
DECODERS = (("finetune.data.decode", "decode_image"),)

OPTIONS: dict[str, dict[str, Any]] = {
    "colour": {"channels": 3},
    "grey": {"channels": 1},
    "colour stretched": {"channels": 3, "high_depth": "stretch"},
    "grey stretched": {"channels": 1, "high_depth": "stretch"},
    "colour decoded smaller": {"channels": 3, "at_least": 6},
    "few pixels": {"channels": 3, "max_pixels": 900},
}


def decoder() -> Callable[..., Any]:
    """The function from a path to uint8 (channels, H, W).

    Raises:
        LookupError: It is at none of the known places; add its new one to ``DECODERS``.
    """
    for module, name in DECODERS:
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        return found
    raise LookupError(f"no decoder at {DECODERS}")


def _decoded(options: dict[str, Any], place: Place) -> dict[str, str]:
    decode, kept = decoder(), {}
    # Pillow warns of some files before it refuses them; as errors, as in tests, warnings would be the refusal
    warnings.simplefilter("ignore")
    for path in sorted(Path(place.work, "odd").iterdir()):
        try:
            kept[path.name] = array_digest(decode(str(path), **options).numpy())
        except Exception as error:
            kept[path.name] = normalized(str(error), place.places)
    return kept


def cases() -> list[Case]:
    """One for each set of options."""
    return [Case("decode", name, partial(_decoded, options)) for name, options in OPTIONS.items()]
