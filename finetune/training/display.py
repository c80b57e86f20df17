"""What a person sees while a phase trains: a progress bar on a terminal, a line an epoch elsewhere."""

import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from finetune.processes import is_first_process


class PhaseProgressBar(RichProgressBar):
    """Lightning's bar with the phase's name in front of the epoch."""

    @staticmethod
    def wanted() -> bool:
        """Whether somebody is looking: only on a terminal."""
        return sys.stdout.isatty()

    def _get_train_description(self, current_epoch: int) -> str:
        phase = getattr(self.trainer.lightning_module, "phase", None)
        name = f"{phase.name}: " if phase is not None else ""
        return f"{name}epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Validation values of the last epoch; the version number that Lightning shows says nothing here."""
        values = {name: float(v) for name, v in trainer.callback_metrics.items() if name in ("val/acc", "val/loss")}
        return {name: round(value, 4) for name, value in values.items()}


class EpochLines(Callback):
    """One plain line an epoch, for logs and pipes.

    Args:
        say: Takes a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After each validation inside a fit."""
        if not is_first_process() or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        values = trainer.callback_metrics
        shown = "  ".join(f"{name} {float(values[name]):.4f}" for name in ("val/loss", "val/acc") if name in values)
        self._say(f"  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}")
