"""The keys of the configuration, by their dotted paths."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from finetune.config.schema import Config, setting_of
from finetune.errors import did_you_mean
from finetune.models.adaptations import ADAPTATIONS
from finetune.training.lr_schedules import LR_SCHEDULES


@dataclass(frozen=True)
class Key:
    """A place in the configuration.

    Args:
        path: Dotted path; a phase's number is written ``N``.
        kind: Its type.
        default: Its default.
        field: Its field of the schema.
    """

    path: str
    kind: Any
    default: Any
    field: "dataclasses.Field[Any]"


def plain_type(annotation: Any) -> Any:
    """Return ``X`` for ``Optional[X]``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation


def all_keys(section: type = Config, prefix: str = "") -> Iterator[Key]:
    """Yield every key, sections first to last, the keys of a phase under ``schedule.phases.N``.

    >>> [key.path for key in all_keys()][:4]
    ['seed', 'name', 'run_dir', 'resume']
    """
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        path, kind = f"{prefix}{field.name}", plain_type(hints[field.name])
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from all_keys(kind, f"{path}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield Key(path, kind, default, field)
        entry = typing.get_args(kind)[0] if typing.get_origin(kind) is list else None
        if dataclasses.is_dataclass(entry):
            assert isinstance(entry, type)
            yield from all_keys(entry, f"{path}.N.")


@lru_cache(maxsize=1)
def path_keys() -> tuple[str, ...]:
    """Return the keys whose values are paths, or may be.

    >>> path_keys()
    ('run_dir', 'data.root', 'data.path', 'data.split_from', 'backbone.weights', 'head.weights')
    """
    return tuple(key.path for key in all_keys() if setting_of(key.field).is_path)


def type_of(path: str) -> Any:
    """Return the type of a key, or None if the path is not a key or lies in a free-form part.

    >>> type_of("schedule.phases.1.train")
    list[str]
    """
    generic = ".".join("N" if part.isdigit() else part for part in path.split("."))
    return next((key.kind for key in all_keys() if key.path == generic), None)


def find_key(path: str) -> tuple[str | None, bool]:
    """Look up a dotted path in the schema.

    Returns:
        The reason why the path is not a key, or None if it is one; and whether it lies in a free-form part, such as ``trainer``.

    >>> find_key("schedule.phases.1.train")
    (None, False)
    >>> find_key("trainer.max_time")
    (None, True)
    >>> find_key("backbone.wieghts")[0]
    "no such key. Keys of backbone: source, name, weights, pool, kwargs, _target_, stages. Did you mean 'backbone.weights'?"
    """
    at: Any = Config
    walked: list[str] = []
    for part in path.split("."):
        at = plain_type(at)
        if dataclasses.is_dataclass(at):
            hints = typing.get_type_hints(at)
            if part not in hints:
                prefix = ".".join(walked)
                known = list(hints)
                near = did_you_mean(part, known)
                if near and prefix:
                    near = near.replace("'", f"'{prefix}.", 1)
                return f"no such key. Keys of {prefix or 'the configuration'}: {', '.join(known)}.{near}", False
            at = hints[part]
        elif typing.get_origin(at) is list:
            if not part.isdigit():
                return f"{'.'.join(walked)} is a list; its entries are numbered from 0.", False
            at = typing.get_args(at)[0]
        elif typing.get_origin(at) is dict or at is Any:
            return None, True
        else:
            return f"{'.'.join(walked)} is a single value and has no key {part!r}.", False
        walked.append(part)
    return None, typing.get_origin(plain_type(at)) is dict


# keys whose allowed words are the names in another module's table, so that a new one is a line in that table alone
_TABLES: dict[str, list[str]] = {"adapt": list(ADAPTATIONS), "lr_schedule": list(LR_SCHEDULES)}


def choices_of(one: "dataclasses.Field[Any]") -> list[str]:
    """Return the words that a field allows; empty if it also allows other values.

    >>> from finetune.config.schema import InputConfig
    >>> choices_of(InputConfig.__dataclass_fields__["adapt"])[:2]
    ['expand', 'fold']
    """
    return _TABLES.get(one.name) or list(setting_of(one).choices)
