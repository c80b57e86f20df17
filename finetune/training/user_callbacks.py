"""The callbacks that a user adds to a run: each phase gets copies; those that would break its counting of steps are refused."""

import copy
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from finetune.errors import UserError, first_line


def check_callback(kind: object, *, where: str) -> None:
    """Refuse a callback that changes during a fit how many batches make a step.

    Args:
        kind: Class of the callback, or a function that makes it, of which nothing is known.
        where: Setting or argument that gives it.

    Raises:
        UserError: It is such a callback.
    """
    if isinstance(kind, type) and issubclass(kind, GradientAccumulationScheduler):
        raise UserError(
            f"{where}: {kind.__name__} changes how many batches make a step, which the run decides itself, because it counts "
            "the steps of each phase. Set schedule.accumulate, or accumulate of a phase."
        )


def copies_for_a_phase(callbacks: Sequence[pl.Callback]) -> list[pl.Callback]:
    """Return copies of the callbacks as the user gave them, so that no phase begins with what another one left in them.

    The patience of an early stopping, for instance, counts within a phase. A resumed run begins a phase with new callbacks
    too, and must end as the uninterrupted one. Callbacks that refer to each other do so in the copies.

    Raises:
        UserError: A callback cannot be copied, or would break the counting of the run.
    """
    copies: list[pl.Callback] = []
    already_copied: dict[int, object] = {}
    for callback in callbacks:
        kind = type(callback)
        check_callback(kind, where="callbacks")
        try:
            copies.append(copy.deepcopy(callback, already_copied))
        except Exception as error:  # what a class of the user's raises is its own choice
            raise UserError(
                f"callbacks: {kind.__module__}.{kind.__qualname__} cannot be copied, and each phase trains with a copy of its "
                f"own. {first_line(error, with_type=True)} Open files, connections and locks in setup(), not in __init__()."
            ) from error
    return copies
