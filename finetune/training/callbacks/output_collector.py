"""Collect the outputs of the network for each image while it is evaluated."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import MetricCollection

from finetune.data.loading import Batch
from finetune.metrics import plain_metrics
from finetune.models.classifier import Classifier
from finetune.training.epoch_history import EpochHistory
from finetune.training.eval_outputs import SplitOutputs, Validation
from finetune.training.staged_module import StagedModule


def _add(outputs: SplitOutputs, classifier: Classifier, batch: Batch, evaluated: dict[str, torch.Tensor]) -> None:
    outputs.add(
        rows=batch.rows,
        targets=batch.targets,
        probabilities_BK=classifier.probabilities(evaluated["logits"]),
        features_BD=evaluated["features"],
    )


class EvaluationOutputs(Callback):
    """Collects the outputs of a test.

    Args:
        embedded_rows: Rows of the index whose embeddings are kept; None keeps none.
    """

    def __init__(self, embedded_rows: torch.Tensor | None = None) -> None:
        self.gathered: dict[str, torch.Tensor] = {}
        self._outputs = SplitOutputs(embedded_rows)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Collect a batch."""
        assert isinstance(pl_module, StagedModule)
        _add(self._outputs, pl_module.classifier, batch, outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather over processes while they are still connected."""
        self.gathered = self._outputs.gather()


class ValidationOutputs(Callback):
    """Keeps the validation of the epoch whose weights the phase hands on, where one process sees all of it.

    Args:
        progress: History of the phase.
        metrics: Metrics that the validation updates.
        restore: Whether the phase hands on the weights of its ``best`` or its ``last`` epoch.
    """

    def __init__(self, progress: EpochHistory, metrics: MetricCollection, *, restore: str) -> None:
        self.validated: Validation | None = None
        self._progress, self._metrics, self._restore = progress, metrics, restore
        self._outputs: SplitOutputs | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to collect."""
        self._outputs = SplitOutputs() if trainer.state.fn == "fit" and trainer.world_size == 1 else None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Collect a batch."""
        assert isinstance(pl_module, StagedModule)
        if self._outputs is not None:
            _add(self._outputs, pl_module.classifier, batch, outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this validation if its weights may be those that the phase hands on; the history has its epoch by now."""
        if self._outputs is not None and (self._progress.improved or self._restore == "last"):
            self.validated = Validation(
                step=trainer.global_step, metrics=plain_metrics(self._metrics), outputs=self._outputs.gather()
            )
        self._outputs = None
