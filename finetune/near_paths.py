"""The file or folder that a path which does not exist was meant to name."""

import os
from itertools import islice
from pathlib import Path

from finetune.errors import closest

# names of a folder that are looked through
_MOST_NAMES = 2000


def near_path(path: str | Path, *, folders: bool = False) -> str | None:
    """Return the path of the closest name beside a missing one, or None if none is close.

    Args:
        path: Path as typed; it does not exist.
        folders: Whether only folders may be meant.
    """
    typed = Path(path)
    try:
        with os.scandir(typed.expanduser().parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES) if not folders or entry.is_dir()]
    except OSError:
        return None
    near = closest(typed.name, sorted(names))
    return None if near is None else str(typed.parent / near)


def did_you_mean_path(path: str | Path, *, folders: bool = False) -> str:
    """Return a hint at :func:`near_path`, with a leading space, or an empty string if there is none."""
    near = near_path(path, folders=folders)
    return "" if near is None else f" Did you mean {near!r}?"
