"""Learning-rate schedules as pure functions of the step, so there is no state to checkpoint.

A new schedule is a function and a line in :data:`LR_SCHEDULES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LRSchedule:
    """A value of ``lr_schedule``.

    Args:
        factor: Function of the step and the number of steps that returns the multiplier of the peak rate. Unless the schedule
            ``has_own_warmup``, both are counted from the end of the linear warmup.
        has_own_warmup: Whether the schedule warms up by itself, so that ``warmup_epochs`` has no effect.
        follows_validation: Whether the factor is also multiplied by the reductions that the validation metric has caused,
            which only a run keeps track of.
    """

    factor: Callable[[int, int], float]
    has_own_warmup: bool = False
    follows_validation: bool = False


def scale(kind: str, *, step: int, total_steps: int, warmup_steps: int = 0, plateau_factor: float = 1.0) -> float:
    """Return the multiplier of a group's peak rate at one step of a phase.

    Args:
        kind: A key of :data:`LR_SCHEDULES`.
        step: Optimizer step in the phase, from 0.
        total_steps: Optimizer steps of the phase; the last one is ``total_steps - 1``.
        warmup_steps: Optimizer steps of the linear warmup; a schedule with its own warmup ignores them.
        plateau_factor: Product of the reductions so far.

    >>> [round(scale("cosine", step=s, total_steps=4), 3) for s in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> [scale("constant", step=s, total_steps=9, warmup_steps=4) for s in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    schedule = LR_SCHEDULES[kind]
    if schedule.has_own_warmup:
        return schedule.factor(step, total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    factor = schedule.factor(step - warmup_steps, total_steps - warmup_steps)
    return factor * plateau_factor if schedule.follows_validation else factor


def _cosine(step: int, total_steps: int) -> float:
    """Fall to zero along a half cosine (Loshchilov and Hutter 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * min(step / max(total_steps, 1), 1.0)))


def _constant(step: int, total_steps: int) -> float:
    return 1.0


def _one_cycle(step: int, total_steps: int) -> float:
    """Rise from 1/25 over the first 30% by a cosine and fall to 1e-4 / 25.

    Smith 2018, with the constants of ``torch.optim.lr_scheduler.OneCycleLR``.
    """
    start, end, top = 1 / 25, 1 / 25 / 1e4, 0.3 * total_steps - 1
    if step <= top:
        low, high, done = start, 1.0, step / top if top > 0 else 1.0
    else:
        low, high, done = 1.0, end, (step - top) / max(total_steps - 1 - top, 1)
    return high + (low - high) / 2 * (1 + math.cos(math.pi * min(done, 1.0)))


LR_SCHEDULES: dict[str, LRSchedule] = {
    "cosine": LRSchedule(factor=_cosine),
    "constant": LRSchedule(factor=_constant),
    "one_cycle": LRSchedule(factor=_one_cycle, has_own_warmup=True),
    "plateau": LRSchedule(factor=_constant, follows_validation=True),
}
