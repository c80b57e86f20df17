"""The callbacks that a user adds to a run: what they begin each phase with, and which are refused."""

import copy
from collections.abc import Sequence
from typing import Any

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


class UserCallbacks:
    """Callbacks that a user adds to a run. Those that keep state in checkpoints begin each phase as they were given.

    The patience of an early stopping, for instance, counts within a phase: a resumed run begins a phase with new callbacks, and
    must end as the uninterrupted one. A callback without state in a checkpoint is left alone, so that it may record a whole run.

    Args:
        callbacks: The callbacks, not yet used.

    Raises:
        UserError: A callback would break the counting of the run, or its state cannot be copied.
    """

    def __init__(self, callbacks: Sequence[pl.Callback] = ()) -> None:
        self._callbacks = list(callbacks)
        for callback in self._callbacks:
            check_callback(type(callback), where="callbacks")
        self._as_given = [(one, self._copy(one, vars(one))) for one in self._callbacks if _keeps_state(one)]

    def for_a_phase(self) -> list[pl.Callback]:
        """Return the callbacks as a phase begins with them."""
        for callback, given in self._as_given:
            vars(callback).clear()
            vars(callback).update(self._copy(callback, given))
        return list(self._callbacks)

    def _copy(self, callback: pl.Callback, state: Any) -> Any:
        """Return a copy of a callback's attributes; callbacks in it stay the same objects."""
        try:
            return copy.deepcopy(state, {id(one): one for one in self._callbacks})
        except Exception as error:  # what a class of the user's raises is its own choice
            kind = type(callback)
            raise UserError(
                f"callbacks: the state of {kind.__module__}.{kind.__qualname__} cannot be copied, and each phase begins with it "
                f"as given. {first_line(error, with_type=True)} Open files, connections and locks in setup(), not in __init__()."
            ) from error


def _keeps_state(callback: pl.Callback) -> bool:
    return type(callback).state_dict is not pl.Callback.state_dict
