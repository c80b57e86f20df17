"""End a phase at its last step, or when its patience has run out."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from finetune.training.epoch_history import EpochHistory
from finetune.training.staged_module import StagedModule


class PhaseStopping(Callback):
    """Stops the Trainer, which then validates and ends the epoch as usual.

    Args:
        progress: History of the phase, with its patience.
    """

    def __init__(self, progress: EpochHistory) -> None:
        self._progress = progress

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop after the last step, which may lie inside an epoch."""
        if self.is_over(trainer, pl_module):
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop when patience has run out, or if the phase was resumed after its last step."""
        if self._progress.stop or self.is_over(trainer, pl_module):
            trainer.should_stop = True

    @staticmethod
    def is_over(trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether the last step is done."""
        assert isinstance(pl_module, StagedModule)
        return trainer.global_step >= pl_module.total_steps
