"""The kinds of data: ``data.source`` names one.

A new one is a file like those beside this, and a line in :data:`DATA_SOURCES`; its settings are fields of ``DataConfig`` in
``config/schema.py``, and a preset is a file in ``conf/data/``.
"""

from pathlib import Path

from finetune.data.sources.digits import DIGITS
from finetune.data.sources.folder import FOLDER
from finetune.data.sources.fractals import FRACTALS
from finetune.data.sources.huggingface import HUGGINGFACE
from finetune.data.sources.kind import SourceKind
from finetune.data.sources.manifest import MANIFEST
from finetune.data.sources.torchvision import TORCHVISION
from finetune.errors import UserError, did_you_mean

DATA_SOURCES: dict[str, SourceKind] = {
    "folder": FOLDER,
    "manifest": MANIFEST,
    "digits": DIGITS,
    "fractals": FRACTALS,
    "torchvision": TORCHVISION,
    "huggingface": HUGGINGFACE,
}

# data of a file or folder that no kind recognises
ANY_FOLDER = "folder"


def recognised(path: Path) -> str | None:
    """Return the name of the kind that recognises a file or folder as its own; None if none does, as for folders of images."""
    return next(
        (name for name, kind in DATA_SOURCES.items() if kind.recognises is not None and kind.recognises(path)), None
    )


def place_settings() -> tuple[str, ...]:
    """Return the settings with the user's file or folder.

    >>> place_settings()
    ('data.root', 'data.path')
    """
    return tuple(dict.fromkeys(f"data.{kind.place}" for kind in DATA_SOURCES.values() if kind.place is not None))


def naming_settings() -> tuple[str, ...]:
    """Return the settings that name a data set of their kind.

    >>> naming_settings()
    ('data.root', 'data.path', 'data.name')
    """
    return tuple(dict.fromkeys(f"data.{key}" for kind in DATA_SOURCES.values() for key in kind.needs))


def source_kind(name: str) -> SourceKind:
    """Return the kind of a name.

    Raises:
        UserError: There is no such source.
    """
    if name == "python":
        raise UserError(
            "data.source='python': this run's images came from Python as an object, which no file holds. Give it again in "
            "Python, as data=, or give other data: data=DIR."
        )
    if name not in DATA_SOURCES:
        raise UserError(
            f"data.source={name!r}: not known. Sources: {', '.join(DATA_SOURCES)}.{did_you_mean(name, DATA_SOURCES)}"
        )
    return DATA_SOURCES[name]
