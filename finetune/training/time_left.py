"""Estimate the time that is left of a run, from the time that its work so far has taken.

The estimate of rich (``TimeRemainingColumn``) is the recent speed of one task. Here an image of a later phase costs several times
that of the first, which is what :func:`cost_of` adds.
"""

import time
from collections.abc import Callable, Sequence

from finetune.phases import ResolvedPhase


def cost_of(phase: ResolvedPhase) -> float:
    """Estimate the work of one image relative to a forward pass.

    A backward pass costs two forward passes, and reaches back to the first stage that trains.

    >>> stages = ("stem", "layer1", "layer2", "head")
    >>> settings = {"name": "p", "stages": stages, "epochs": 1, "lr": 0.1, "batch_size": 8, "augment": "none"}
    >>> cost_of(ResolvedPhase(train=("head",), **settings)), cost_of(ResolvedPhase(train=("stem", "head"), **settings))
    (1.5, 3.0)
    """
    reached = len(phase.stages) - phase.stages.index(phase.train[0])
    return 1.0 + 2.0 * reached / len(phase.stages)


class TimeLeft:
    """Estimates the seconds that are left of the whole schedule.

    Later phases train more stages and take longer per image; :func:`cost_of` accounts for that. Early stopping is not
    predicted.

    Args:
        phases: Phases of the schedule.
        images: Training images in an epoch.
        clock: Function that returns a time in seconds.
    """

    def __init__(
        self, phases: Sequence[ResolvedPhase], *, images: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._work = [phase.epochs * images * cost_of(phase) for phase in phases]
        self._clock = clock
        # work done before this process started to train, and the time then; a resumed run did some in another process
        self._began: tuple[float, float] | None = None

    def at(self, phase: int, share: float) -> float | None:
        """Return the seconds left at a point of the schedule; None at the first point, from which time is measured.

        Args:
            phase: Number of the phase, from 0.
            share: Share of that phase that is done, from 0 to 1.
        """
        done = sum(self._work[:phase]) + share * self._work[phase]
        if self._began is None:
            self._began = (done, self._clock())
            return None
        began_at, began = self._began
        if done <= began_at:
            return None
        return (self._clock() - began) / (done - began_at) * (sum(self._work) - done)


def in_words(seconds: float | None) -> str:
    """Return the time left in words; empty if it is unknown or zero.

    >>> in_words(None), in_words(0.0), in_words(4.2), in_words(95), in_words(7000)
    ('', '', 'about 5 s left', 'about 2 min left', 'about 1.9 h left')
    """
    if not seconds:
        return ""
    if seconds < 60:
        # rounded up to five seconds: the estimate is no more precise
        return f"about {5 * max(1, -int(-seconds // 5))} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
