"""Arguments of Python's functions, checked before anything is built: their names, and what each of them may be."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload

from finetune.errors import UserError, did_you_mean, type_in_words
from finetune.foreign_words import FOREIGN
from finetune.python_names import python_names

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What an argument may be.

    Args:
        form: The right form, as it ends "must be".
        fits: Whether a value has it; None is never asked about.
    """

    form: str
    fits: Callable[[Any], bool]


def _is(*types: type) -> Callable[[Any], bool]:
    # NumPy's numbers are numbers; in Python a bool is one too
    return lambda value: isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _several(value: Any, one: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and all(map(one, value))


def _callback(value: Any) -> bool:
    from lightning.pytorch import Callback

    return isinstance(value, Callback)


def _logger(value: Any) -> bool:
    from lightning.pytorch.loggers import Logger

    return isinstance(value, Logger)


def _metric(value: Any) -> bool:
    from torchmetrics import Metric

    return isinstance(value, Metric)


def _module(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _named(value: Any, one: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) and one(item) for key, item in value.items())


_is_text = _is(str)
TEXT = Kind(form="a string", fits=_is_text)
NUMBER = Kind(form="a number", fits=_is(Real))
WHOLE = Kind(form="a whole number", fits=_is(Integral))
SWITCH = Kind(form="True or False", fits=_is(bool))
PATH = Kind(form="a path", fits=_is(str, Path))
TEXTS = Kind(form="a list of strings, ['a', 'b']", fits=lambda value: _several(value, _is_text))
STAGES = Kind(
    form="a stage or a list of stages, ['stem', 'layer1']",
    fits=lambda value: _is_text(value) or _several(value, _is_text),
)

# argument of a public function -> what it may be; those that take a model or data check themselves
KINDS: Mapping[str, Kind] = {
    "weights": Kind(form="a string or a path", fits=_is(str, Path)),
    "stages": Kind(form="a dict of lists of child modules, {'stem': ['conv1']}", fits=_is(Mapping)),
    "lr": Kind(
        form="a number, 1e-3; rates from the deepest stage to the head are finetune.Phase(lr_slice=[1e-5, 1e-3])",
        fits=_is(Real),
    ),
    **dict.fromkeys(("uncertain_below", "accept", "least", "sets"), NUMBER),
    **dict.fromkeys(("epochs", "batch_size", "channels", "seed", "seeds", "k", "count", "check"), WHOLE),
    "size": Kind(
        form="a whole number of pixels, or (height, width)",
        fits=lambda value: _is(Integral)(value) or (_several(value, _is(Integral)) and len(value) == 2),
    ),
    **dict.fromkeys(("classes", "rungs"), TEXTS),
    "overrides": Kind(
        form="a list of overrides, ['schedule.phases.1.epochs=5']", fits=lambda value: _several(value, _is_text)
    ),
    "freeze": STAGES,
    **dict.fromkeys(("augment", "monitor", "metric", "stage", "split", "format", "precision", "layout"), TEXT),
    "transform": Kind(form="a function from uint8 (C, H, W) to the same", fits=callable),
    "modules": Kind(form="a dict of modules, {'head': MyHead(512, 3)}", fits=lambda value: _named(value, _module)),
    "metrics": Kind(
        form="a dict of torchmetrics metrics, {'top3': MulticlassAccuracy(num_classes=10, top_k=3)}",
        fits=lambda value: _named(value, _metric),
    ),
    "callbacks": Kind(
        form="a list of Lightning callbacks, [MyCallback()]", fits=lambda value: _several(value, _callback)
    ),
    "loggers": Kind(
        form="tensorboard, mlflow, wandb, none, or a list of Lightning loggers",
        fits=lambda value: _is_text(value) or _several(value, _logger),
    ),
    **dict.fromkeys(("output", "folder"), PATH),
    **dict.fromkeys(("trust", "anyway", "normalize", "unknown"), SWITCH),
}


def check_names(given: Sequence[str], known: Sequence[str], *, of: str) -> None:
    """Check that named arguments exist.

    Args:
        given: Names of the arguments given.
        known: Names of the arguments that there are.
        of: What they are arguments of, for the message.

    Raises:
        UserError: There is no such argument; the message has the name that was meant.

    >>> check_names(["model"], ["data", "backbone"], of="finetune.fit")
    Traceback (most recent call last):
    ...
    finetune.errors.UserError: model: not an argument of finetune.fit. Use backbone=...
    """
    for name in given:
        if name in known:
            continue
        key = _MEANT.get(name, FOREIGN.get(name))
        if callable(key):
            key = key("...")[-1].partition("=")[0]
        last = key.rpartition(".")[2] if isinstance(key, str) else ""
        if last in known:
            hint = f" Use {last}=..."
        elif isinstance(key, str) and "overrides" in known:
            hint = f" Use overrides=['{key}=...']"
        else:
            hint = did_you_mean(name, known) or f" Its arguments: {', '.join(known)}."
        raise UserError(f"{name}: not an argument of {of}.{hint}")


# class -> how a caller calls an object of it
_OBJECTS = {"TrainedModel": "model", "Classifier": "model", "Embeddings": "embeddings", "Table": "table"}

# names that other libraries give the arguments of a call
_MEANT = {
    **dict.fromkeys(("path", "dls", "train_dataset", "dataloaders", "train_dataloader"), "data"),
    **dict.fromkeys(("bs",), "batch_size"),
    **dict.fromkeys(("logger",), "loggers"),
    **dict.fromkeys(("callback", "cbs"), "callbacks"),
    **dict.fromkeys(("metric",), "metrics"),
    **dict.fromkeys(("criterion", "loss_func", "loss_fn"), "loss"),
    **dict.fromkeys(("phases",), "schedule"),
    **dict.fromkeys(("layers", "stages", "unfreeze"), "train"),
    **dict.fromkeys(("fmt", "form"), "format"),
}


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Kind] = KINDS) -> None:
    """Check what arguments are; None is left to the function.

    Raises:
        UserError: An argument is something else; the message has the right form.

    >>> check_kinds({"freeze": 2})
    Traceback (most recent call last):
    ...
    finetune.errors.UserError: freeze: must be a stage or a list of stages, ['stem', 'layer1']. It is an int, 2.
    """
    for name, value in values.items():
        kind = kinds.get(name)
        if kind is not None and value is not None and not kind.fits(value):
            raise UserError(f"{name}: must be {kind.form}. It is {described(value)}.")


def described(value: Any) -> str:
    """Return what a value is, for a message: its type, and the value itself where it is short.

    >>> described(2), described(["acc"])
    ('an int, 2', "a list, ['acc']")
    >>> described([int])
    'a list with the class int; give an object of it, int(...)'
    """
    if isinstance(value, type):
        return f"the class {value.__name__}; give an object of it, {value.__name__}(...)"
    what = type_in_words(value)
    if isinstance(value, (list, tuple, dict)) and value:
        items = list(value.values() if isinstance(value, Mapping) else value)
        if classes := [item for item in items if isinstance(item, type)]:
            return f"{what} with {described(classes[0])}"
        if not all(isinstance(item, _PLAIN) for item in items):
            return f"{what} with {', '.join(sorted({type(item).__name__ for item in items}))}"
    elif value is None or not isinstance(value, _PLAIN):
        return what
    text = repr(value)
    return f"{what}, {text}" if len(text) <= _SHORT else what


# values that say more than their types, and the longest of them that a message shows
_PLAIN = (str, int, float, list, tuple, dict)
_SHORT = 60


@overload
def public(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def public(
    function: None = None, *, like: Callable[..., Any] | None = None, **own: Kind
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def public(function: Any = None, *, like: Callable[..., Any] | None = None, **own: Kind) -> Any:
    """Decorate a public function or method: a wrong call is one :class:`finetune.errors.UserError`.

    Args:
        function: The function, or a method of a public class.
        like: Function whose arguments it takes as ``**arguments``; None for those that it names itself.
        **own: Arguments that may be something else than :data:`KINDS` has.
    """
    if function is None:
        return lambda decorated: public(decorated, like=like, **own)
    signature = inspect.signature(function if like is None else like)
    of, _, own_name = function.__qualname__.rpartition("<locals>.")[2].rpartition(".")
    name = f"finetune.{of}" if own_name == "__init__" else f"{_OBJECTS.get(of, 'finetune')}.{own_name}"
    # the object of a method is no argument to its caller
    known = list(signature.parameters)[1 if of else 0 :]
    kinds = {**KINDS, **own}
    # further arguments go to a library, which knows their names
    open_ended = any(at.kind is at.VAR_KEYWORD for at in signature.parameters.values())

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not open_ended:
            check_names(list(kwargs), known, of=name)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            shown = ", ".join(
                key if signature.parameters[key].default is inspect.Parameter.empty else f"{key}=..."
                for key in known[:3]
            )
            raise UserError(f"{name}: {error}. Call it as {name}({shown}).") from error
        check_kinds({key: value for key, value in bound.arguments.items() if key in known}, kinds)
        typed = bound.arguments.get("overrides") or ()
        with python_names(known, typed=typed):
            return function(*args, **kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]  # of inspect
    return checked
