"""Check the contents of a phase's checkpoints before any of them are used.

A checksum does not help here: whoever wrote a checkpoint also wrote its checksum.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from finetune.checksums import remedy
from finetune.errors import UserError, shortened, type_in_words
from finetune.training.param_groups import OptimizerFactory

Groups = Sequence[Mapping[str, Any]]

_VERSION = re.compile(r"\d{1,4}(\.\w{1,20}){1,5}")


class ContentsError(ValueError):
    """Raised when a checkpoint holds an invalid value; the text is a sentence without its full stop."""


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Name the checkpoint in the message if a check in the block fails.

    Raises:
        UserError: A check failed.
    """
    try:
        yield
    except ContentsError as error:
        raise UserError(f"{path}: not a checkpoint of this phase. {error}. {remedy(path)}.") from error


def check_best(state: Mapping[str, Any], *, phase: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Check ``best.ckpt``.

    Args:
        state: Contents of the checkpoint.
        phase: Name of the phase.
        weights: Tensors that the checkpoint must hold, by name; only shapes and types count.

    Raises:
        ContentsError: Something is missing or does not fit.
    """
    check_tensors(state.get("state_dict"), weights, name="state_dict")
    own = _table(state.get("finetune"), "finetune")
    if own.get("phase") != phase:
        raise ContentsError(f"Its phase is {_shown(own.get('phase'))}, not {phase!r}")
    check_history(own.get("history"))


def check_last(
    state: Mapping[str, Any],
    *,
    phase: str,
    weights: Mapping[str, torch.Tensor],
    averages: Mapping[str, torch.Tensor] | None,
    groups: Groups,
    make_optimizer: OptimizerFactory,
) -> None:
    """Check ``last.ckpt``, from which Lightning resumes.

    Args:
        state: Contents of the checkpoint.
        phase: Name of the phase.
        weights: Tensors that the checkpoint must hold, by name; only shapes and types count.
        averages: Averaged weights that the checkpoint must hold; None if the phase does not average.
        groups: Parameter groups of the phase.
        make_optimizer: Function that makes the optimizer of the phase.

    Raises:
        ContentsError: Something is missing or does not fit.
    """
    check_best(state, phase=phase, weights=weights)
    callbacks = _table(state.get("callbacks"), "callbacks")
    course = _table(callbacks.get("PhaseCheckpoints"), "PhaseCheckpoints")
    for key in ("validation_due", "finished"):
        if not isinstance(course.get(key), bool):
            raise ContentsError(f"Its {key} is {_shown(course.get(key))}, and must be true or false")
    log = _table(callbacks.get("EpochLog"), "EpochLog")
    check_rows(log.get("rows"), phase=phase)
    if course["finished"] and not 0 < len(log["rows"]) == len(state["finetune"]["history"]):
        raise ContentsError("Its phase is finished, but it does not have a row for each epoch")
    sums = log.get("sums")
    if not (isinstance(sums, list) and sums):
        raise ContentsError("Its sums are not a list, with an entry for each process")
    for entry in sums:
        check_sums(entry)
    if averages is not None:
        check_tensors(saved_averages(state), averages, name="averages")
    _check_gradients(_table(callbacks.get("GradientNorms"), "GradientNorms"))
    for key in ("epoch", "global_step"):
        check_count(state.get(key), key)
    version = state.get("pytorch-lightning_version")
    if not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise ContentsError(f"The version of Lightning that wrote it is {_shown(version)}")
    _check_counts(_table(state.get("loops"), "loops"), "loops")
    if not isinstance(state.get("lr_schedulers"), list):
        raise ContentsError("Its lr_schedulers are not a list")
    optimizers = state.get("optimizer_states")
    if not (isinstance(optimizers, list) and len(optimizers) == 1):
        raise ContentsError("It does not hold the state of one optimizer")
    check_optimizer(optimizers[0], groups=groups, make_optimizer=make_optimizer)


def is_finished(state: Mapping[str, Any]) -> bool:
    """Return whether a checked ``last.ckpt`` belongs to a phase with nothing left to train."""
    return bool(state["callbacks"]["PhaseCheckpoints"]["finished"])


def saved_processes(state: Mapping[str, Any]) -> int:
    """Return the number of processes that wrote a checked ``last.ckpt``."""
    return len(state["callbacks"]["EpochLog"]["sums"])


def saved_averages(state: Mapping[str, Any]) -> Any:
    """Return the averaged weights of a ``last.ckpt``, unchecked; None if there are none."""
    averaging = _table(state.get("callbacks"), "callbacks").get("StageEma")
    return None if averaging is None else _table(averaging, "StageEma").get("averages")


def check_progress(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check that the saved counters of Lightning's loops match the Trainer's.

    Raises:
        ContentsError: A counter is missing or has the wrong type.
    """
    if not _alike(saved, own):
        raise ContentsError("Its loop counters do not match the Trainer's")


def check_tensors(saved: object, expected: Mapping[str, torch.Tensor], *, name: str, finite: bool = True) -> None:
    """Check that tensors have the expected names, shapes and types, and hold finite values.

    Raises:
        ContentsError: A tensor does not fit.
    """
    tensors = _table(saved, name)
    if tensors.keys() != expected.keys():
        odd = sorted(_shown(key) for key in tensors.keys() ^ expected.keys())
        raise ContentsError(f"Its {name} does not hold the tensors of this network: {shortened(odd)}")
    for key, tensor in tensors.items():
        example = expected[key]
        if not _plain(tensor) or tensor.is_floating_point() != example.is_floating_point():
            raise ContentsError(f"{key} in its {name} is not a tensor of {_kind(example)}")
        if tensor.shape != example.shape:
            raise ContentsError(f"{key} in its {name} has shape {tuple(tensor.shape)}, not {tuple(example.shape)}")
        if finite and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ContentsError(f"{key} in its {name} holds values that are not finite")


def check_history(history: object) -> None:
    """Check the monitored metric and the loss of each epoch.

    Raises:
        ContentsError: An entry is not a pair of numbers.
    """
    if not (isinstance(history, list) and all(_numbers(entry, 2) for entry in history)):
        raise ContentsError("Its history is not a list of pairs of numbers, one per epoch")


def check_sums(sums: object) -> None:
    """Check the sums of an epoch so far: loss, correct predictions and images.

    Raises:
        ContentsError: They are not three numbers.
    """
    if not _numbers(sums, 3):
        raise ContentsError("Its sums are not a loss, a number of correct predictions and a number of images")


def check_rows(rows: object, *, phase: str) -> None:
    """Check rows of ``metrics.csv``.

    Raises:
        ContentsError: A row is not a table of numbers with the phase's name, its epoch and its step.
    """
    if not isinstance(rows, list):
        raise ContentsError("Its rows are not a list")
    for row in rows:
        if not (
            isinstance(row, dict)
            and row.get("phase") == phase
            and all(_whole(row.get(key)) for key in ("epoch", "step"))
            and all(isinstance(key, str) and (key == "phase" or _number(value)) for key, value in row.items())
        ):
            raise ContentsError("Its rows are not tables of an epoch's metrics")


def check_count(value: object, name: str, *, most: int = 2**53) -> int:
    """Return the value if it is a whole number from 0 to ``most``.

    Raises:
        ContentsError: The value is something else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
        return value
    raise ContentsError(f"Its {name} is {_shown(value)}, and must be a whole number from 0 to {most}")


def check_optimizer(saved: object, *, groups: Groups, make_optimizer: OptimizerFactory) -> None:
    """Check an optimizer's state against that of a fresh optimizer of the same kind after one step.

    Args:
        saved: State as :meth:`torch.optim.Optimizer.state_dict` returns it.
        groups: Parameter groups of the network, in order.
        make_optimizer: Function that makes the optimizer.

    Raises:
        ContentsError: The state does not fit these groups.
    """
    state = _table(saved, "optimizer state")
    values, saved_groups = _table(state.get("state"), "optimizer state"), state.get("param_groups")
    fresh = make_optimizer([{**group, "params": [nn.Parameter(torch.zeros(1))]} for group in groups])
    parameters = [parameter for group in groups for parameter in group["params"]]
    numbers = iter(range(len(parameters)))
    expected = [
        {**own, "params": [next(numbers) for _ in group["params"]]}
        for own, group in zip(fresh.param_groups, groups, strict=True)
    ]
    if not isinstance(saved_groups, list) or not _alike(saved_groups, expected):
        raise ContentsError("The groups of its optimizer are not those of this phase")
    if [group["params"] for group in saved_groups] != [group["params"] for group in expected]:
        raise ContentsError("The groups of its optimizer are not those of this phase")
    examples = _after_a_step(groups, {parameter.shape for parameter in parameters}, make_optimizer)
    for number, held in values.items():
        if not (_whole(number) and number < len(parameters) and isinstance(held, dict)):
            raise ContentsError(f"Its optimizer holds {_shown(number)}, which is not a parameter of this phase")
        example = examples.get(parameters[number].shape, {})
        if missing := example.keys() - held.keys():
            raise ContentsError(f"Its optimizer lacks {shortened(sorted(missing))} of parameter {number}")
        for key, value in held.items():
            if not _alike(value, example.get(key, value)):
                raise ContentsError(f"{_shown(key)} of parameter {number} in its optimizer has the wrong type or shape")


def _after_a_step(
    groups: Groups, shapes: Collection[torch.Size], make_optimizer: OptimizerFactory
) -> dict[torch.Size, Mapping[str, Any]]:
    """Return the optimizer state of a parameter of each shape after a step of zeros.

    One example for all shapes would not do: Adafactor keeps factors of the moments, in timm only of large parameters.
    """
    copies = {shape: nn.Parameter(torch.zeros(shape)) for shape in sorted(shapes)}
    optimizer = make_optimizer([{**groups[0], "params": list(copies.values())}])
    for copy in copies.values():
        copy.grad = torch.zeros_like(copy)
    try:
        optimizer.step()
    except Exception:  # a user-supplied optimizer may need more than gradients
        return {}
    return {shape: dict(optimizer.state[copy]) for shape, copy in copies.items()}


def _check_gradients(gradients: Mapping[str, Any]) -> None:
    check_count(gradients.get("steps"), "gradients")
    sums = gradients.get("sums")
    if sums is not None and not (_plain(sums) and sums.ndim == 2 and sums.shape[1] == 2 and sums.is_floating_point()):
        raise ContentsError("Its gradients are not a sum and a count for each stage")


def _check_counts(value: object, name: str, depth: int = 0) -> None:
    """Check that nested tables hold only counts and booleans."""
    if isinstance(value, dict) and depth < 10 and all(isinstance(key, str) for key in value):
        for key, inner in value.items():
            _check_counts(inner, f"{name}.{key}"[:200], depth + 1)
    elif not isinstance(value, bool) and value != []:
        check_count(value, name)


def _table(value: object, name: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ContentsError(f"Its {name} is {_shown(value)}, and must be a table")
    return value


def _alike(value: object, example: object) -> bool:
    """Return whether a value has the example's keys, lengths, shapes and types; texts must be equal."""
    if isinstance(example, torch.Tensor):
        if example.ndim == 0 and _number(value):
            return True
        return _plain(value) and value.shape == example.shape
    if isinstance(example, Mapping):
        return (
            isinstance(value, Mapping)
            and example.keys() <= value.keys()
            and all(_alike(value[key], inner) for key, inner in example.items())
        )
    if isinstance(example, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(example)
            and all(_alike(one, other) for one, other in zip(value, example, strict=True))
        )
    if isinstance(example, str):
        return value == example
    if isinstance(example, bool) or example is None:
        return value is None or isinstance(value, bool) or (example is None and _number(value))
    if isinstance(example, int | float):
        return _number(value) or (_plain(value) and value.ndim == 0)
    return type(value) is type(example)


def _plain(value: object) -> TypeGuard[torch.Tensor]:
    """Return whether a value is a dense tensor of numbers in memory."""
    return (
        type(value) in (torch.Tensor, nn.Parameter)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
    )


def _kind(tensor: torch.Tensor) -> str:
    return "floating-point numbers" if tensor.is_floating_point() else "whole numbers"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _numbers(value: object, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length and all(_number(entry) for entry in value)


def _shown(value: object) -> str:
    """Return a value for a message: the start of a string, a number, or else its type."""
    if isinstance(value, str):
        return repr(value[:40])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 2**63 else "a number beyond 64 bits"
    return f"{type_in_words(value)}"
