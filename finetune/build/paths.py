"""Check the paths that the user typed before torch is loaded, and make those absolute that a run writes down."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config.keys import path_keys
from finetune.config.schema import Config, DataConfig
from finetune.data.sources import DATA_SOURCES
from finetune.errors import UserError

if TYPE_CHECKING:  # a wrong path is reported before NumPy is loaded
    from finetune.data.listing import Listing, Use


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration as a run records it: its paths of data and weights do not depend on the working directory.

    A run can be resumed, tested and reported from any directory, even after its folder has been moved.

    Raises:
        UserError: A path is not valid UTF-8, so the files of a run cannot store it.
    """
    backbone, head = config.backbone, config.head
    kind = DATA_SOURCES.get(config.data.source)
    defaults = {} if kind is None else kind.defaults
    data = {}
    for name in (key.removeprefix("data.") for key in path_keys() if key.startswith("data.")):
        given = getattr(config.data, name)
        data[name] = _absolute(defaults.get(name) if given is None else given, key=f"data.{name}")
    _absolute(config.run_dir, key="run_dir")
    return replace(
        config,
        data=replace(config.data, **data),
        backbone=replace(
            backbone, weights=os.path.abspath(backbone.weights) if _is_path(backbone.weights) else backbone.weights
        ),
        head=replace(head, weights=head.weights and os.path.abspath(head.weights)),
    )


def check_data_is_there(config: Config, *, command: str) -> None:
    """Check that the data of a run is still where it was when the run started.

    Args:
        config: Configuration of the run.
        command: Command that takes ``data.root=`` or ``data.path=``, for the message.

    Raises:
        UserError: The data is no longer there.
    """
    kind = DATA_SOURCES.get(config.data.source)
    key = kind.place if kind is not None else None
    for place in _places(config.data):
        if place and not Path(place).exists():
            raise UserError(
                f"data.{key}={str(place)!r}: no longer exists. The run was trained on data at that path. If it has moved, "
                f"give its new path: {command} data.{key}={'DIR' if key == 'root' else 'PATH'}"
            )


def _places(data: DataConfig) -> list[Any]:
    """Return the user's files or folders that the data is read from; empty for data of another kind."""
    kind = DATA_SOURCES.get(data.source)
    value = getattr(data, kind.place) if kind is not None and kind.place is not None else []
    return value if isinstance(value, list) else [value]


def data_name(config: Config) -> str:
    """Return a short name of the data for the names of folders: of its folder or table if it lies in one, else of its kind.

    >>> data_name(Config(data=DataConfig(source="folder", root="a/my pets/")))
    'my-pets'
    """
    names = [_name_of(place) for place in _places(config.data) if place]
    name = re.sub(r"[^\w.+-]+", "-", "+".join(names) or config.data.name or "").strip("-.")
    return name[:40] or config.data.source


def _name_of(place: str) -> str:
    path = Path(os.path.abspath(place))
    return path.name if path.is_dir() else path.stem


def _absolute(place: Any, *, key: str) -> Any:
    """Return a path, or a list of them, as absolute paths that the files of a run can store; empty and None stay."""
    if isinstance(place, list):
        return [_absolute(one, key=key) for one in place]
    if not place:
        return place
    path = os.path.abspath(str(place))
    _must_be_utf8(key, path)
    return path


def _must_be_utf8(key: str, path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{key}={path.encode('utf-8', 'backslashreplace').decode('utf-8')!r}: must be a name in UTF-8. It holds bytes that "
            "are not UTF-8. Rename the folder, or give a link to it with another name."
        ) from None


def _is_path(weights: str) -> bool:
    looks_like_path = "/" in weights or weights.endswith((".safetensors", ".pth", ".pt", ".ckpt"))
    return looks_like_path and not weights.startswith("hub:")


def check_paths(config: Config, *, use: "Use" = "train") -> "Listing | None":
    """Check the location of the data as far as possible before torch is imported, which takes seconds.

    Args:
        config: Checked configuration.
        use: What the data is for.

    Returns:
        The listing of the data, for :func:`finetune.build.data.build_source`, if its kind lists it; else None.

    Raises:
        UserError: The folder is missing, holds no images, or does not suit its use.
    """
    kind = DATA_SOURCES.get(config.data.source)
    listing = None
    if kind is not None and kind.check is not None:
        listing = kind.check(**kind.specific_settings(config.data), use=use)
    weights = config.backbone.weights
    if _is_path(weights) and not Path(weights).exists():
        raise UserError(f"backbone.weights={weights!r}: no such file or folder.")
    return listing
