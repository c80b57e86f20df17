"""Reads the YAML of a run folder as plain values; nothing in it is executed or resolved."""

import io
from pathlib import Path
from typing import Any

from finetune.errors import UserError, first_line, type_in_words
from finetune.safe_files import LARGEST_YAML, checked_yaml, read_text
from finetune.terminal import printable


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file as dicts, lists and plain values.

    Raises:
        UserError: The file is not in the form that a run writes (see :func:`~finetune.safe_files.checked_yaml`), or does not
            hold a mapping.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    text = checked_yaml(read_text(path, largest=LARGEST_YAML), name=str(path))
    try:
        # OmegaConf's loader reads 1e-3 as a number and refuses duplicate keys
        loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        why = first_line(error)
        raise UserError(f"{path}: cannot be read as YAML. {printable(why)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must hold a mapping of keys to values. It holds {type_in_words(loaded)}.")
    return {str(key): value for key, value in loaded.items()}
