"""``data.augment``: the name of a training view, or a list of operations of torchvision or your own.

A list may begin with the view that its operations follow, such as ``standard``; without one they follow the evaluation view.
An operation is the name of a class in ``torchvision.transforms.v2`` (``RandomVerticalFlip``), such a name with arguments
(``{RandomRotation: {degrees: 180}}``), or a node with a ``_target_`` and arguments.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.errors import UserError, did_you_mean

AUGMENTS = ("none", "light", "standard", "trivial_augment", "rand_augment")
TORCHVISION = "torchvision.transforms.v2."

# torchvision takes Pillow's number of a filter as well as its own names, which are not plain values
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_NAME = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """A training view.

    Args:
        base: View of ``AUGMENTS`` that the operations follow.
        nodes: Operations, each with ``_target_`` and plain arguments.
    """

    base: str
    nodes: tuple[dict[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """Return the name of the view, or all operations as one line; equal lines are equal views."""
        if not self.nodes:
            return self.base
        return " + ".join(["evaluation view" if self.base == "none" else self.base, *map(_in_words, self.nodes)])

    def targets(self) -> list[str]:
        """Return the class names of all operations, also of those inside others."""
        return [target for node in self.nodes for target in _targets(node)]


def augment_settings(value: Any, *, setting: str = "data.augment") -> AugmentSettings:
    """Read a value of ``data.augment``.

    >>> augment_settings(["light", "RandomVerticalFlip", {"RandomRotation": {"degrees": 9}}]).text
    'light + RandomVerticalFlip + RandomRotation(degrees=9)'

    Args:
        value: Name of a view, or a list of operations.
        setting: Setting that holds the value, for messages.

    Raises:
        UserError: There is no such view, or an entry of the list is not an operation.
    """
    where = f"{setting}={value!r}"
    if isinstance(value, str):
        if value not in AUGMENTS:
            raise UserError(
                f"{where}: must be one of {', '.join(AUGMENTS)}, or a list of operations.{did_you_mean(value, AUGMENTS)}"
            )
        return AugmentSettings(base=value)
    if not isinstance(value, list | tuple) or not value:
        raise UserError(
            f"{where}: must be one of {', '.join(AUGMENTS)}, or a list of operations. Use for example "
            f"'{setting}=[standard, RandomVerticalFlip]'."
        )
    first = value[0] if value[0] in AUGMENTS else None
    entries = value if first is None else value[1:]
    return AugmentSettings(base=first or "none", nodes=tuple(_node(entry, where) for entry in entries))


def _node(entry: Any, where: str) -> dict[str, Any]:
    if isinstance(entry, str) and _NAME.fullmatch(entry) and entry not in AUGMENTS:
        return {"_target_": TORCHVISION + entry}
    if isinstance(entry, Mapping):
        if isinstance(entry.get("_target_"), str):
            arguments = {str(key): value for key, value in entry.items() if key != "_target_"}
            return {"_target_": entry["_target_"], **_arguments(arguments, where)}
        name, given = next(iter(entry.items()), (None, None))
        if len(entry) == 1 and isinstance(name, str) and _NAME.fullmatch(name) and isinstance(given, Mapping | None):
            return {"_target_": TORCHVISION + name, **_arguments(given or {}, where)}
    raise UserError(
        f"{where}: each operation must be a name of torchvision.transforms.v2, a name with arguments, or a node with a "
        f"_target_. Found {entry!r}. Use for example RandomVerticalFlip or {{RandomRotation: {{degrees: 180}}}}."
    )


def _arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    taken = dict(arguments)
    if isinstance(taken.get("transforms"), list | tuple):
        taken["transforms"] = [_node(entry, where) for entry in taken["transforms"]]
    if isinstance(name := taken.get("interpolation"), str):
        if name not in _FILTERS:
            raise UserError(f"{where}: interpolation={name!r} is not known. Choices: {', '.join(_FILTERS)}.")
        taken["interpolation"] = _FILTERS[name]
    return taken


def _targets(node: Mapping[str, Any]) -> Iterator[str]:
    yield str(node["_target_"])
    for inner in node.get("transforms") or ():
        if isinstance(inner, Mapping):
            yield from _targets(inner)


def _in_words(node: Mapping[str, Any]) -> str:
    arguments = ", ".join(
        f"{key}=[{', '.join(map(_in_words, value))}]"
        if key == "transforms" and isinstance(value, list)
        else f"{key}={value}"
        for key, value in node.items()
        if key != "_target_"
    )
    return str(node["_target_"]).removeprefix(TORCHVISION) + (f"({arguments})" if arguments else "")
