"""User-supplied modules in a model: their classes, and a check of each by one forward pass."""

import hashlib
import inspect
import json
import pickle
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from finetune.errors import UserError, first_line, type_in_words
from finetune.file_errors import out_of_memory
from finetune.models.modes import evaluating
from finetune.terminal import printable

# B = batch, D = features, K = classes

# in descriptions: the name of a head, and the source of a backbone, that is a user-supplied module
OWN = "own"
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# packages whose version identifies their code
_LIBRARIES = ("builtins", "torch", "torchvision", "timm", "transformers", "finetune", "typing", "abc")


def class_name(module: nn.Module) -> str:
    """Return the module and the qualified name of a module's class.

    >>> class_name(nn.Linear(1, 1))
    'torch.nn.modules.linear.Linear'
    """
    return f"{type(module).__module__}.{type(module).__qualname__}"


def code_digest(things: Iterable[type | Callable[..., Any]]) -> str:
    """Return the SHA-256 of the source files that define classes, their bases and functions, except those of libraries.

    Two networks with the same weights and different code compute different features.

    >>> code_digest([nn.Linear]) == code_digest([nn.ReLU])
    True
    """
    every = {base for thing in things for base in (thing.__mro__ if isinstance(thing, type) else (thing,))}
    own = {thing for thing in every if str(thing.__module__).partition(".")[0] not in _LIBRARIES}
    text = "\0".join(sorted({_source(thing) for thing in own}))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _source(thing: type | Callable[..., Any]) -> str:
    """Return the text of the file that defines a class or a function, or else its own source, or a mark of its own."""
    with suppress(OSError, TypeError, UnicodeDecodeError):  # defined in a notebook, or compiled
        return Path(inspect.getfile(thing)).read_text()
    with suppress(OSError, TypeError):
        return inspect.getsource(thing)
    return _own_mark(thing)


def modules_digest(net: nn.Module) -> str:
    """Return the SHA-256 of the modules of a network: their names, classes and attributes, without parameters and buffers.

    Two networks with the same weights and code compute different features with another activation, stride or factor.

    >>> modules_digest(nn.ReLU()) == modules_digest(nn.GELU())
    False
    """
    whole = hashlib.sha256()
    for name, module in net.named_modules(remove_duplicate=False):
        attributes = {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}
        for part in (name, class_name(module), _values(module, attributes)):
            whole.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return whole.hexdigest()


def _values(owner: nn.Module, attributes: Mapping[str, Any]) -> str:
    with suppress(TypeError, ValueError):
        return json.dumps(attributes)
    try:
        return pickle.dumps(attributes).hex()
    except Exception:  # values of any type
        return _own_mark(owner)


# of things that cannot be described: the same within this process, and never that of another thing
_marks: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def _own_mark(thing: Any) -> str:
    return _marks.setdefault(thing, uuid.uuid4().hex)


def check_head(head: nn.Module, *, num_features: int, num_classes: int) -> None:
    """Check by a forward pass of zeros that a head maps features ``(B, D)`` to logits ``(B, K)``.

    Raises:
        UserError: The head does not.

    >>> check_head(nn.Linear(8, 3), num_features=8, num_classes=3)
    """
    shape = (2, num_features)
    rule = (
        f"head: {class_name(head)} must map features (B, {num_features}) to logits (B, {num_classes}). "
        f"A forward pass of zeros {shape}"
    )
    advice = f"Build it for {num_features} features and {num_classes} classes"
    output = forward_zeros(head, shape, rule=rule, advice=advice)
    if tuple(output.shape) != (2, num_classes):
        raise UserError(f"{rule} gave {tuple(output.shape)}. {advice}.")


def user_head_settings(
    head: nn.Module, *, num_features: int, num_classes: int, target: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return plain JSON values that describe a user-supplied head: its class, its widths, and the node that built it."""
    settings = {"name": OWN, "class": class_name(head), "num_features": num_features, "num_classes": num_classes}
    return settings if target is None else {**settings, "target": dict(target)}


def user_classes(model: Mapping[str, Any]) -> dict[str, str]:
    """Return the user-supplied classes that a model needs, by part: ``head`` and ``backbone``.

    Args:
        model: Description from :meth:`finetune.models.classifier.Classifier.describe`.
    """
    needed = {}
    if model["head"].get("name") == OWN:
        needed["head"] = str(model["head"]["class"])
    if model["backbone"].get("source") == OWN:
        needed["backbone"] = str(model["backbone"]["name"])
    return needed


def user_targets(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nodes that built the user-supplied modules, by part; a module that was given as an object has none."""
    targets = {"head": model["head"].get("target"), "backbone": model["backbone"]["kwargs"].get("target")}
    return {part: dict(target) for part in user_classes(model) if (target := targets[part]) is not None}


def modules_text(model: Mapping[str, Any], parts: Collection[str] | None = None) -> str:
    """Return the ``modules=`` that :func:`finetune.load` needs, as Python text; empty for a model that needs none.

    Args:
        model: Description from :meth:`finetune.models.classifier.Classifier.describe`.
        parts: Parts to give; None for those that were given as objects, which nothing names how to build.

    >>> modules_text({"head": {"name": "own", "class": "mine.Head"}, "backbone": {"source": "timm", "kwargs": {}}})
    'modules={"head": Head(...)}'
    """
    needed = user_classes(model)
    chosen = set(needed) - set(user_targets(model)) if parts is None else set(parts)
    given = ", ".join(
        f'"{part}": {printable(name).rpartition(".")[2]}(...)' for part, name in needed.items() if part in chosen
    )
    return f"modules={{{given}}}" if given else ""


@torch.no_grad()
def forward_zeros(net: nn.Module, shape: Sequence[int], *, rule: str, advice: str) -> Tensor:
    """Return a module's output for zeros, in evaluation mode; leave the global random state alone.

    Args:
        net: Module to try.
        shape: Shape of the input.
        rule: Start of the message if that fails: the rule, and what was tried.
        advice: End of that message: what to do.

    Raises:
        UserError: The module raises an error, or does not return a tensor.
    """
    parameter = next(iter(net.parameters()), None)
    # a lazy parameter has no type yet
    known = parameter is not None and not isinstance(parameter, nn.parameter.UninitializedParameter)
    zeros = torch.zeros(shape, device=parameter.device if parameter is not None else None)
    zeros = zeros.to(parameter.dtype) if parameter is not None and known else zeros
    try:
        with torch.random.fork_rng(devices=[]), evaluating(net):
            output = net(zeros)
    except Exception as error:  # the user's code may raise anything
        if out_of_memory(error):
            raise
        why = first_line(error, with_type=True).rstrip(".")
        raise UserError(f"{rule} failed with {why}. {advice}.") from error
    if not isinstance(output, Tensor):
        raise UserError(f"{rule} gave {type_in_words(output)}, not a tensor. {advice}.")
    return output
