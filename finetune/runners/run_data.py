"""The data that a trained run is used on: its own, or other images, which are read as its own were."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config import compose, from_yaml, with_overrides
from finetune.config.schema import Config, DataConfig
from finetune.data.sources import source_kind
from finetune.data.sources.kind import FILE_KEYS
from finetune.errors import UserError
from finetune.near_paths import did_you_mean_path
from finetune.run_names import CONFIG
from finetune.safe_files import inside

if TYPE_CHECKING:
    from finetune.data.decode import DecodeOptions


def read_as_trained(
    config: Config, overrides: Sequence[str], options: "DecodeOptions", *, settings: Sequence[str] | None = None
) -> None:
    """Set how images are read to what training recorded, unless an override says otherwise.

    An override also takes the place of what it contradicts: a bit depth that of a range of integers, and the reverse; either
    that of ``high_depth=stretch``; and another ``high_depth`` that of ranges and bit depth.

    Args:
        config: Configuration to change.
        overrides: Checked overrides.
        options: How training read images.
        settings: Settings of the data that may be set; None for those of its kind.
    """
    settings = source_kind(config.data.source).settings if settings is None else settings
    data, recorded = config.data, options.to_plain()
    typed = {key for key in FILE_KEYS if any(word.startswith(f"data.{key}=") for word in overrides)}
    if "bit_depth" in typed and data.bit_depth == "auto":
        typed.remove("bit_depth")  # the range of training is kept
    reset: set[str] = set()
    if "high_depth" in typed and data.high_depth != recorded["high_depth"]:
        reset |= {"bit_depth", "integer_range", "float_range"}
    if "bit_depth" in typed:
        reset |= {"integer_range", "high_depth"}
    if "integer_range" in typed:
        reset |= {"bit_depth", "high_depth"}
    for key in (reset | set(recorded)) & set(settings) - typed:
        setattr(data, key, getattr(DataConfig(), key) if key in reset else recorded[key])


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
