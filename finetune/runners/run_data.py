"""The data that a trained run is used on: its own, or other images, which are read as its own were."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config import compose, from_yaml, with_overrides
from finetune.config.schema import Config
from finetune.data.sources import source_kind
from finetune.errors import UserError
from finetune.run_names import CONFIG
from finetune.safe_files import inside

if TYPE_CHECKING:
    from finetune.data.decode import DecodeOptions


def read_as_trained(config: Config, overrides: Sequence[str], options: "DecodeOptions") -> None:
    """Set how image files are read to what training recorded, unless an override says otherwise."""
    recorded = options.to_plain()
    for key in set(recorded) & set(source_kind(config.data.source).settings):
        if not any(word.startswith(f"data.{key}=") for word in overrides):
            setattr(config.data, key, recorded[key])


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
        raise UserError(f"RUN='{run}': no such folder.")
    own = folder / CONFIG
    if any(word.startswith("data=") for word in overrides):
        return compose(overrides)
    if not os.path.lexists(own):
        raise UserError(f"RUN='{run}': a bundle does not record where its data is. Give data=DIR.")
    from finetune.build.data import with_loaders_that_fit

    saved = with_loaders_that_fit(from_yaml(inside(own.parent, own.name)), saved_in=own)
    return with_overrides(saved, overrides) if overrides else saved
