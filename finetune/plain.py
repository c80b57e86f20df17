"""Dataclasses to and from the plain values of JSON: a file is checked where it is read, and passed around as a dataclass."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, Union

from finetune.errors import UserError, shortened

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    # a value of a JSON document with arbitrary keys: a configuration, the arguments of a library's network
    Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
else:
    # accepted unchecked when a dataclass is read, because parse_json has checked it
    Json = object

T = TypeVar("T")


def to_plain(value: "DataclassInstance") -> dict[str, Json]:
    """Return the fields of a dataclass as JSON values, in order.

    A field that is None is left out if None is its default: this kind of result does not have it. A class may define its own
    ``to_plain``.

    >>> @dataclasses.dataclass
    ... class Point:
    ...     at: tuple[int, ...]
    ...     name: str | None = None
    >>> to_plain(Point((1, 2))), to_plain(Point((1,), "a"))
    ({'at': [1, 2]}, {'at': [1], 'name': 'a'})
    """
    fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return {field.name: _plain(inner) for field, inner in fields if inner is not None or field.default is not None}


def _plain(value: object) -> Json:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = getattr(value, "to_plain", None)
        return typing.cast(Json, own()) if own is not None else to_plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return typing.cast(Json, value)


def from_plain(kind: type[T], value: object, *, name: str, remedy: str = "") -> T:
    """Make a dataclass from JSON values of unknown origin; unknown fields are ignored.

    Args:
        kind: Dataclass to make. Its fields may be numbers, strings, ``tuple[X, ...]``, ``Mapping[str, X]``, unions and
            dataclasses; a class with its own ``from_plain`` reads a mapping that has been checked.
        value: The value read.
        name: Name of the file in messages.
        remedy: What to do if the file is damaged, as a sentence.

    Raises:
        UserError: Fields are missing or of the wrong type; all are named.

    >>> @dataclasses.dataclass
    ... class Point:
    ...     at: tuple[int, ...]
    ...     name: str | None = None
    >>> from_plain(Point, {"at": [1, 2], "unknown": 0}, name="x.json")
    Point(at=(1, 2), name=None)
    >>> from_plain(Point, {"at": [True], "name": 1}, name="x.json")
    Traceback (most recent call last):
        ...
    finetune.errors.UserError: x.json: damaged. Missing or of the wrong type: at[0], name.
    """
    wrong: list[str] = []
    made = _read(kind, value, "", wrong)
    if wrong:
        raise UserError(
            f"{name}: damaged. Missing or of the wrong type: {shortened(wrong)}.{f' {remedy}' if remedy else ''}"
        )
    return typing.cast(T, made)


@cache
def _hints(kind: type) -> dict[str, object]:
    return typing.get_type_hints(kind)


def _read(kind: object, value: object, path: str, wrong: list[str]) -> object:
    """Return a value converted to a type; append the paths of parts that do not fit to ``wrong``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is object:
        return value
    if origin in (Union, types.UnionType):
        for choice in arguments:
            problems: list[str] = []
            made = _read(choice, value, path, problems)
            if not problems:
                return made
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            return _read_fields(kind, value, path, wrong)
    elif origin in (tuple, Sequence):
        if isinstance(value, list):
            return tuple(_read(arguments[0], inner, f"{path}[{at}]", wrong) for at, inner in enumerate(value))
    elif origin is Mapping:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _read(arguments[1], inner, f"{path}.{key}", wrong) for key, inner in value.items()}
    elif origin is Literal:
        if value in arguments:
            return value
    else:
        # bool is a subclass of int; and a JSON writer may write 2.0 as 2
        kinds: tuple[type, ...] = (int, float) if kind is float else (typing.cast(type, kind),)
        if isinstance(value, kinds) and (kind is bool or not isinstance(value, bool)):
            return value
    wrong.append(path or "all of it")
    return None


def _read_fields(kind: type, values: Mapping[str, object], path: str, wrong: list[str]) -> object:
    hints, before = _hints(kind), len(wrong)
    own = getattr(kind, "from_plain", None)
    if own is not None:
        return own(values)
    made = {}
    for field in dataclasses.fields(kind):
        at = f"{path}.{field.name}" if path else field.name
        if field.name in values:
            made[field.name] = _read(hints[field.name], values[field.name], at, wrong)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            wrong.append(at)
    return kind(**made) if len(wrong) == before else None
