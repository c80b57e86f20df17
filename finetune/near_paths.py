"""The file or folder that a path which does not exist was meant to name."""

import os
from itertools import islice
from pathlib import Path

from finetune.errors import did_you_mean

# names of a folder that are looked through
_MOST_NAMES = 2000


def did_you_mean_path(path: str | Path, *, folders: bool = False) -> str:
    """Return a hint at the closest name beside a missing path, with a leading space, or an empty string if none is close.

    Args:
        path: Path as typed; it does not exist.
        folders: Whether only folders may be meant.
    """
    typed = Path(path)
    try:
        with os.scandir(typed.expanduser().parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES) if not folders or entry.is_dir()]
    except OSError:
        return ""
    hint = did_you_mean(typed.name, sorted(names))
    return hint.replace("'", f"'{_parent(typed)}", 1)


def _parent(typed: Path) -> str:
    parent = str(typed.parent)
    return "" if parent == "." else parent if parent.endswith(os.sep) else parent + os.sep
