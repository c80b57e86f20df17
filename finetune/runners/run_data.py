"""The data that a trained run is used on: its own, or other images, which are read as its own were."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config import compose, from_yaml, with_overrides
from finetune.config.schema import Config
from finetune.data.sources import source_kind
from finetune.errors import UserError
from finetune.near_paths import did_you_mean_path
from finetune.run_names import CONFIG
from finetune.safe_files import inside

if TYPE_CHECKING:
    from finetune.data.decode import DecodeOptions


# settings that say how files become pixels
_READING = ("max_pixels", "high_depth", "bit_depth", "integer_range", "float_range")


def read_as_trained(config: Config, overrides: Sequence[str], options: "DecodeOptions") -> None:
    """Set how image files are read to what training recorded, unless an override says otherwise.

    An override also takes the place of what it contradicts: a bit depth that of a range of integers, and the reverse; either
    that of ``high_depth=stretch``; and another ``high_depth`` that of ranges and bit depth.
    """
    data, recorded = config.data, options.to_plain()
    typed = {key for key in _READING if any(word.startswith(f"data.{key}=") for word in overrides)}
    if "bit_depth" in typed and data.bit_depth == "auto":
        typed.remove("bit_depth")  # the range of training is kept
    instead: dict[str, Any] = {}
    if "high_depth" in typed and data.high_depth != recorded["high_depth"]:
        instead = {"bit_depth": "auto", "integer_range": None, "float_range": None}
    if "bit_depth" in typed:
        instead |= {"integer_range": None, "high_depth": "full"}
    if "integer_range" in typed:
        instead |= {"bit_depth": "auto", "high_depth": "full"}
    for key, value in (recorded | instead).items():
        if key in source_kind(data.source).settings and key not in typed:
            setattr(data, key, value)


# settings that say how a table names what it holds
_COLUMNS = ("path_column", "label_column", "label_columns", "label_separator")


def _name_columns_alike(config: Config, own: Config, overrides: Sequence[str]) -> None:
    """Read a table as the run's own is read, if it has the columns of that, unless an override says otherwise."""
    if not config.data.source == own.data.source == "manifest" or any(
        word.startswith(tuple(f"data.{key}=" for key in _COLUMNS)) for word in overrides
    ):
        return
    from finetune.data.manifest import read_columns

    needed = {own.data.path_column, *(own.data.label_columns or [own.data.label_column])}
    if needed <= set(read_columns(str(config.data.path))):
        for key in _COLUMNS:
            setattr(config.data, key, getattr(own.data, key))


def data_config(run: str, overrides: Sequence[str]) -> Config:
    """Return the configuration of the data: the run's own, changed by overrides, or a new one.

    Args:
        run: Run or bundle folder.
        overrides: Checked overrides; with ``data=`` among them, they compose a configuration of their own.

    Raises:
        UserError: There is no such folder or no configuration in it, or a value does not fit.
    """
    folder = Path(run).expanduser()
    if not folder.exists():
        raise UserError(f"RUN='{run}': no such folder.{did_you_mean_path(run, folders=True)}")
    own = folder / CONFIG
    if any(word.startswith("data=") for word in overrides):
        config = compose(overrides)
        if os.path.lexists(own):
            _name_columns_alike(config, from_yaml(inside(own.parent, own.name)), overrides)
        return config
    if not os.path.lexists(own):
        raise UserError(f"RUN='{run}': a bundle does not record where its data is. Give data=DIR.")
    from finetune.build.data import with_loaders_that_fit

    saved = with_loaders_that_fit(from_yaml(inside(own.parent, own.name)), saved_in=own)
    return with_overrides(saved, overrides) if overrides else saved
