"""Decide the best epoch, early stopping and plateau reductions, as pure functions of the epochs so far."""

import math
from dataclasses import dataclass, field

from finetune.monitors import minimizes


@dataclass(kw_only=True)
class EpochHistory:
    """Holds the monitored metric and the validation loss of each finished epoch, and decides from them.

    Epochs are ranked by the metric, and where it ties (accuracy on few images often does) by the loss.

    Everything is computed from ``history``, which is all that a checkpoint keeps: a resumed phase decides as the
    uninterrupted one would have.

    Args:
        monitor: Name of the metric.
        minimize: Whether smaller values of it are better; None for a built-in metric: of a loss and a calibration error.
        patience: Epochs without improvement after which to stop; None never stops.
        history: Metric and validation loss of each epoch.

    >>> progress = EpochHistory(monitor="val/acc", patience=2, history=[(0.5, 1.0), (0.7, 0.8), (0.7, 0.9), (0.6, 0.7)])
    >>> progress.best_epoch, progress.improved, progress.stop
    (1, False, True)
    """

    monitor: str
    patience: int | None = None
    history: list[tuple[float, float]] = field(default_factory=list)
    minimize: bool | None = None

    @property
    def smaller_is_better(self) -> bool:
        """Return whether the metric is a loss or an error."""
        return minimizes(self.monitor) if self.minimize is None else self.minimize

    def _better(self, new: tuple[float, float], old: tuple[float, float]) -> bool:
        return self._rank(new) < self._rank(old)

    def _rank(self, entry: tuple[float, float]) -> tuple[float, float]:
        """Return a sort key that puts the best epoch first; NaN is worse than every number."""
        value, loss = (math.inf if math.isnan(x) else x for x in entry)
        return (value if self.smaller_is_better or math.isinf(value) else -value), loss

    @property
    def best_epoch(self) -> int:
        """Return the first epoch that no later one beat; -1 before the first."""
        best = -1
        for epoch, value in enumerate(self.history):
            if best < 0 or self._better(value, self.history[best]):
                best = epoch
        return best

    @property
    def improved(self) -> bool:
        """Return whether the last epoch is the best so far."""
        return bool(self.history) and self.best_epoch == len(self.history) - 1

    @property
    def stop(self) -> bool:
        """Return whether patience has run out."""
        return self.patience is not None and len(self.history) - 1 - self.best_epoch >= self.patience

    def plateau_factor(self, *, patience: int = 2, factor: float = 0.1) -> float:
        """Return the product of the reductions after each ``patience`` epochs in a row without a better value.

        The rule of ``torch.optim.lr_scheduler.ReduceLROnPlateau`` with ``threshold=0``, ``cooldown=0`` and a patience
        short enough for the phases of fine-tuning. That class is not used, because Lightning skips one of its steps at
        each resume.

        >>> EpochHistory(monitor="val/loss", history=[(1.0, 1.0)] * 4).plateau_factor()
        0.1
        """
        scale, bad, best = 1.0, 0, None
        for value in self.history:
            if best is None or self._better(value, best):
                best, bad = value, 0
            else:
                bad += 1
            if bad > patience:
                scale, bad = scale * factor, 0
        return scale
