"""The user's cache folder, for everything that can be computed again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Return a path in the user's cache: ``$FINETUNE_CACHE``, ``$XDG_CACHE_HOME/finetune``, or ``~/.cache/finetune``.

    Args:
        name: Name of the folder or file in the cache.

    Returns:
        The path, which need not exist; None if ``FINETUNE_CACHE=off`` disables the cache.
    """
    named = os.environ.get("FINETUNE_CACHE")
    if named == "off":
        return None
    base = (
        Path(named).expanduser()
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"
    )
    return base / name
