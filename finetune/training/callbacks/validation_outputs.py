"""Keep the validation of the chosen epoch, so that the final evaluation need not repeat it."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import MetricCollection

from finetune.data.loading import Batch
from finetune.metrics import split_metrics
from finetune.training.epoch_history import EpochHistory
from finetune.training.eval_outputs import SplitOutputs, Validation
from finetune.training.staged_module import StagedModule


class ValidationOutputs(Callback):
    """Keeps the validation of the epoch whose weights the phase passes on, if a single process sees all of it.

    Args:
        progress: History of the phase.
        metrics: Metrics that the validation updates.
        restore: Whether the phase passes on the weights of its ``best`` or its ``last`` epoch.
        embedded_rows: Rows of the validation images whose embeddings are kept.
    """

    def __init__(
        self, progress: EpochHistory, metrics: MetricCollection, *, restore: str, embedded_rows: torch.Tensor
    ) -> None:
        self.validated: Validation | None = None
        self._progress, self._metrics, self._restore, self._embedded_rows = progress, metrics, restore, embedded_rows
        self._outputs: SplitOutputs | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to collect outputs."""
        collects = trainer.state.fn == "fit" and trainer.world_size == 1
        self._outputs = SplitOutputs(self._embedded_rows) if collects else None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Collect the outputs of a batch."""
        assert isinstance(pl_module, StagedModule)
        if self._outputs is not None:
            self._outputs.add(
                rows=batch.rows,
                targets=batch.targets,
                logits_BK=outputs["logits"],
                features_BD=outputs["features"],
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this validation if the phase may pass on its weights; the history already has its epoch."""
        if self._outputs is not None and (self._progress.improved or self._restore == "last"):
            self.validated = Validation(
                step=trainer.global_step, metrics=split_metrics(self._metrics), outputs=self._outputs.gather()
            )
        self._outputs = None
