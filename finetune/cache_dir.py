"""Where everything that can be computed again is kept between runs."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """A folder of the user's cache: of ``$FINETUNE_CACHE``, else ``$XDG_CACHE_HOME/finetune``, else ``~/.cache/finetune``.

    Args:
        name: Of the folder or file inside.

    Returns:
        Its path, which need not exist; None where ``FINETUNE_CACHE=off`` says that the user wants no cache.
    """
    named = os.environ.get("FINETUNE_CACHE")
    if named == "off":
        return None
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"
    return base / name
