"""Checks a folder that the library datasets is to open: it must name no other place, and hold nothing that blocks.

``datasets.load_dataset`` follows what ``README.md`` and ``.huggingface.yaml`` name as ``data_files``, addresses among them, and
``load_from_disk`` what ``state.json`` names.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from finetune.errors import UserError
from finetune.safe_files import LARGEST_YAML, checked_yaml, read_json, read_text
from finetune.terminal import printable

_CARD, _SETTINGS = "README.md", ".huggingface.yaml"
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def check_folder(folder: Path) -> None:
    """Check what a data set's folder names and holds.

    Raises:
        UserError: A file leads out of the folder or to an address, is damaged, or is no regular file.
    """
    for path in _irregular(folder):
        raise UserError(f"{path}: must be a regular file. Remove it from the data set.")
    for values, path in _descriptions(folder):
        configs = values.get("configs") if isinstance(values, dict) else None
        for config in configs if isinstance(configs, list) else [configs]:
            for key in ("data_files", "data_dir"):
                for name in _texts(config.get(key) if isinstance(config, dict) else None):
                    _must_stay(name, f"{path}: {key}")
    for saved in (folder, *(folder / name for name in _splits(folder))):
        if os.path.lexists(saved / _STATE):
            for name in _texts(read_json(saved / _STATE, dict).get("_data_files")):
                _must_stay(name, f"{saved / _STATE}: filename")


def _irregular(folder: Path) -> Iterator[Path]:
    """Yield what is neither a file nor a folder, nor a link to one; links to folders are not followed."""
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file() and not entry.is_dir():
                    yield Path(entry.path)


def _descriptions(folder: Path) -> Iterator[tuple[object, Path]]:
    """Yield the values of the two files that may name the files of the data set."""
    import yaml

    for path in (folder / _CARD, folder / _SETTINGS):
        if not os.path.lexists(path):
            continue
        text = read_text(path, largest=LARGEST_YAML)
        if path.name == _CARD:
            # as datasets reads it: lines between two of three dashes, the first of them at the beginning
            lines = text.splitlines()
            if not lines or lines[0] != "---" or "---" not in lines[1:]:
                continue
            text = "\n".join(lines[1 : lines.index("---", 1)])
        yield yaml.safe_load(checked_yaml(text, name=str(path))), path


def _splits(folder: Path) -> list[str]:
    """Return the names of the folders of a ``DatasetDict``."""
    if not os.path.lexists(folder / _SPLITS):
        return []
    names = read_json(folder / _SPLITS, dict).get("splits")
    found = list(_texts(names))
    for name in found:
        _must_stay(name, f"{folder / _SPLITS}: splits")
    return found


def _texts(values: object) -> Iterator[str]:
    """Yield all texts in nested lists and mappings."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value)


def _must_stay(name: str, where: str) -> None:
    """Refuse an address and a path that leads out of the folder."""
    parts = re.split(r"[/\\]", name)
    if "://" in name or "::" in name or ".." in parts or os.path.isabs(name) or re.match(r"[A-Za-z]:", name):
        raise UserError(
            f"{where}={printable(name)!r}: leads out of the data set. It must be a path inside its folder. "
            "Download what it needs, and save it there."
        )
