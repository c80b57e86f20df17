"""Compute the learning rate as a pure function of the step: nothing to restore, nothing to restore wrongly."""

import math


def scale(kind: str, *, step: int, total_steps: int, warmup_steps: int = 0, plateau_factor: float = 1.0) -> float:
    """Return what a group's peak rate is multiplied with at one step of a phase.

    ``cosine`` falls to zero at the end (Loshchilov and Hutter 2017, without restarts); ``one_cycle`` rises from 1/25 over
    the first 30% by a cosine and falls to 1e-4 / 25 (Smith 2018, with the constants of ``torch.optim.lr_scheduler.OneCycleLR``);
    ``constant`` stays; ``plateau`` is handed its factor, which follows the validation metric.

    Args:
        kind: ``cosine``, ``constant``, ``one_cycle`` or ``plateau``.
        step: Optimizer step in the phase, from 0.
        total_steps: Optimizer steps of the phase; the last one is ``total_steps - 1``.
        warmup_steps: Length of the linear rise; ``one_cycle`` has its own and ignores it.
        plateau_factor: Product of the reductions so far.

    >>> [round(scale("cosine", step=s, total_steps=4), 3) for s in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> [scale("constant", step=s, total_steps=9, warmup_steps=4) for s in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if kind == "one_cycle":
        return _one_cycle(step, total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "cosine":
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return plateau_factor if kind == "plateau" else 1.0


def _one_cycle(step: int, total_steps: int) -> float:
    start, end, top = 1 / 25, 1 / 25 / 1e4, 0.3 * total_steps - 1
    if step <= top:
        low, high, done = start, 1.0, step / top if top > 0 else 1.0
    else:
        low, high, done = 1.0, end, (step - top) / max(total_steps - 1 - top, 1)
    return high + (low - high) / 2 * (1 + math.cos(math.pi * min(done, 1.0)))
