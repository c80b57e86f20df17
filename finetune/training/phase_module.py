"""The LightningModule of one phase of a run, on keyed batches of images or cached activations."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn
from torchmetrics import Metric

from finetune.checksums import remedy
from finetune.data.loading import Batch
from finetune.data.sampling import key
from finetune.errors import RunError, UserError, first_line
from finetune.metrics import build_metrics, correct_predictions, split_metrics, update_metrics
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.results import EpochRow, Offset
from finetune.training.callbacks.checkpoint_contents import check_progress, errors_naming
from finetune.training.callbacks.ema import StageEma
from finetune.training.callbacks.epoch_log import EpochLog
from finetune.training.callbacks.gradient_norms import GradientNorms
from finetune.training.callbacks.guards import Guards
from finetune.training.callbacks.phase_stopping import PhaseStopping
from finetune.training.callbacks.validation_outputs import ValidationOutputs
from finetune.training.epoch_history import EpochHistory
from finetune.training.eval_outputs import Validation
from finetune.training.losses import build_mixer
from finetune.training.param_groups import OptimizerFactory, OptimizerState
from finetune.training.phase_forward import PhaseForward
from finetune.training.staged_module import PREFIX, StagedModule, checkpoint_tensors


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Settings of a fit that the run decides, not the phase.

    Args:
        monitor: Metric that decides which epoch was best.
        minimize: Whether smaller values of it are better; None for a built-in metric.
        seed: Seed of the run; part of the key of each step's randomness.
        number: Position of the phase in the schedule, from 0.
        offset: Epochs and optimizer steps of the phases before, for the axes of logs.
        compiled: Whether ``torch.compile`` compiles the trainable part.
        embedded_rows: Rows of the validation images whose embeddings are kept with the outputs of the validation whose weights
            the phase passes on; None keeps no outputs.
    """

    monitor: str
    minimize: bool | None = None
    seed: int = 0
    number: int = 0
    offset: Offset = field(default_factory=Offset)
    compiled: bool = False
    embedded_rows: torch.Tensor | None = None


class PhaseModule(StagedModule):
    """Trains the stages of one phase on the batches of a run.

    ``apply_phase`` must have set gradient flags and modes before ``Trainer.fit``; the module itself never changes them. Its
    callbacks average, guard, measure, log and end the phase; each keeps its own state in the checkpoint.

    Args:
        classifier: Network at the start of the phase.
        phase: Phase to train.
        optimizer: Function that makes the optimizer from named groups.
        loss: Training loss, from logits (B, K) and targets to losses (B,).
        settings: Settings that the run decides.
        batches_per_epoch: Training batches in an epoch.
        file_of: Function that returns the file of a row, for messages.
        user_metrics: User-supplied metrics by name; None for none.
        carried: Optimizer state of the phase before, by parameter name; None starts with a fresh one.
        cached_stage: Stage whose cached output the batches hold instead of images; None if they hold images.
    """

    def __init__(
        self,
        *,
        classifier: Classifier,
        phase: ResolvedPhase,
        optimizer: OptimizerFactory,
        loss: nn.Module,
        settings: FitSettings,
        batches_per_epoch: int,
        file_of: Callable[[int], str] = str,
        user_metrics: Mapping[str, Metric] | None = None,
        carried: OptimizerState | None = None,
        cached_stage: str | None = None,
    ) -> None:
        super().__init__(
            classifier,
            phase,
            optimizer=optimizer,
            loss=loss,
            total_steps=phase.total_steps(batches_per_epoch),
            warmup_steps=round(phase.warmup_epochs * phase.steps_per_epoch(batches_per_epoch)),
        )
        # a checkpoint holds only the trainable stages; the others are in the phase's start.safetensors
        self.strict_loading = False
        self.phase_number = settings.number
        self.progress = EpochHistory(monitor=settings.monitor, patience=phase.patience, minimize=settings.minimize)
        self.metrics = build_metrics(len(classifier.classes), multi_label=classifier.multi_label, own=user_metrics)
        self._seed, self._carried = settings.seed, carried
        self._forward = PhaseForward(classifier, phase, cached_stage=cached_stage, compiled=settings.compiled)
        self._mixer = build_mixer(mixup=phase.mixup, cutmix=phase.cutmix, num_classes=len(classifier.classes))
        # True from reading a checkpoint until training continues
        self._restoring = False
        self._ema = StageEma(classifier, stages=phase.train, decay=phase.ema_decay) if phase.ema_decay else None
        self._guards = Guards(classifier=classifier, phase=phase, file_of=file_of)
        self._gradient_norms = GradientNorms(classifier, stages=phase.train)
        self._epoch_log = EpochLog(
            phase=phase.name, offset=settings.offset, accuracy=self._mixer is None, norms=self._gradient_norms
        )
        self._validation = (
            None
            if settings.embedded_rows is None
            else ValidationOutputs(
                self.progress, self.metrics, restore=phase.restore, embedded_rows=settings.embedded_rows
            )
        )

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks of the phase, in the order in which they act.

        Lightning puts them after the user's callbacks, which they watch, and before those that write checkpoints.
        """
        kept = [callback for callback in (self._ema, self._validation) if callback is not None]
        return [self._guards, self._gradient_norms, *kept, self._epoch_log, PhaseStopping(self.progress)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer, with the state that the phase before passes on, if any."""
        optimizer = super().configure_optimizers()
        if self._carried:
            for name, parameter in self.classifier.named_parameters():
                if parameter.requires_grad and name in self._carried:
                    optimizer.state[parameter] = self._carried[name]
        return optimizer

    def optimizer_state(self) -> OptimizerState:
        """Return the optimizer's state by parameter name, to be carried into the next phase."""
        optimizer = self.trainer.optimizers[0]
        return {n: optimizer.state[p] for n, p in self.classifier.named_parameters() if p in optimizer.state}

    def plateau_factor(self) -> float:
        """Return the factor by which ``plateau`` has reduced the rates so far, following the validation metric."""
        return self.progress.plateau_factor()

    @property
    def averages(self) -> dict[str, torch.Tensor] | None:
        """Return the averaged weights by name; None if the phase does not average."""
        return None if self._ema is None else self._ema.averages

    @property
    def rows(self) -> list[EpochRow]:
        """Return one row of metrics for each epoch that has ended."""
        return self._epoch_log.rows

    @property
    def validated(self) -> Validation | None:
        """Return the validation of the weights that the phase passes on; None if it was not kept."""
        return None if self._validation is None else self._validation.validated

    @contextmanager
    def restoring(self, checkpoint: Path) -> Iterator[None]:
        """Name the checkpoint in the message if Lightning cannot restore it; use this around a fit.

        Raises:
            UserError: Lightning cannot resume from it.
        """
        try:
            with errors_naming(checkpoint):
                yield
        except (UserError, RunError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not self._restoring:
                raise
            why = first_line(error, with_type=True).rstrip(".")
            raise UserError(f"{checkpoint}: cannot be resumed from. {why}. {remedy(checkpoint)}.") from error

    def on_train_start(self) -> None:
        """Note that Lightning has restored the checkpoint."""
        self._restoring = False

    def on_fit_start(self) -> None:
        """Build the frozen prefix, and compile the trainable part."""
        self._forward.prepare(device=self.device, context=self.trainer.precision_plugin.forward_context)
        self._forward.compile()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Check the batch's position, seed the step's randomness, and write the rates."""
        position = batch.position
        if (position.epoch, position.step) != (self.current_epoch, batch_idx):
            raise RunError(
                f"batch {position.step} of epoch {position.epoch} arrived where batch {batch_idx} of epoch "
                f"{self.current_epoch} was due. The loaders and the Trainer disagree about the position; please report this."
            )
        torch.manual_seed(
            key(self._seed, "step", self.phase.name, position.epoch, position.step, self.trainer.global_rank)
        )
        self.set_rates()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Return this process's share of the batch's mean loss, the loss of each image, and which predictions are correct."""
        images, targets = batch.images, batch.targets
        if self._mixer is not None:
            images, targets = self._mixer(images.float() / 255, targets)
            # mixed in single precision; in bf16-true the network takes no other type than its own
            images = images.to(self.classifier.input.mean.dtype)
        logits_BK = self._forward.logits(images)
        losses_B = self.loss(logits_BK, targets)
        # DDP averages over processes, whose shares of a batch may differ by one image
        loss = losses_B.sum() * (batch.position.world / batch.position.global_size)
        return {
            "loss": loss,
            "losses": losses_B.detach(),
            "right": correct_predictions(logits_BK.detach(), batch.targets),
        }

    def on_validation_start(self) -> None:
        """Reset the metrics."""
        self.metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Update the metrics with one batch."""
        features_BD, logits_BK = self._forward.features_and_logits(batch.images)
        update_metrics(self.metrics, logits=logits_BK, targets=batch.targets)
        return {"features": features_BD, "logits": logits_BK}

    def on_validation_epoch_end(self) -> None:
        """Append the epoch's validation to the history, and log it for callbacks."""
        scalars = {f"val/{name}": value for name, value in split_metrics(self.metrics).scalars().items()}
        if self.progress.monitor not in scalars:
            raise UserError(
                f"monitor={self.progress.monitor!r}: not a validation metric. Metrics: {', '.join(sorted(scalars))}."
            )
        self.progress.history.append((scalars[self.progress.monitor], scalars["val/loss"]))
        # on every process, for user-supplied callbacks; the values already cover all images
        self.log_dict(scalars, logger=False, batch_size=1)

    def require_finite(self) -> None:
        """Check that the last loss and the trainable weights are finite; a validation does so by itself.

        Raises:
            RunError: They are not.
        """
        self._guards.require_finite(self.trainer.global_step)

    def trainable_state(self) -> dict[str, torch.Tensor]:
        """Return the weights and buffers of the trainable stages, by their names in a checkpoint."""
        return checkpoint_tensors(self.classifier, self.phase)

    def best_checkpoint(self) -> dict[str, Any]:
        """Return the contents of ``best.ckpt``: the weights that were validated, averaged if the phase averages."""
        weights = self.trainable_state()
        if self.averages is not None:
            weights = {PREFIX + name: average for name, average in self.averages.items()}
        state = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        return {"state_dict": state, "finetune": self._course()}

    def _course(self) -> dict[str, Any]:
        return {"phase": self.phase.name, "history": [list(entry) for entry in self.progress.history]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the trainable stages, and add the history on which rates, patience and the best epoch depend."""
        kept = set(self.trainable_state())
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in kept}
        checkpoint["finetune"] = self._course()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history of the phase.

        Raises:
            UserError: The checkpoint belongs to another phase, or holds other tensors.
        """
        self._restoring = True
        check_progress(checkpoint["loops"]["fit_loop"], self.trainer.fit_loop.state_dict())
        course = checkpoint.get("finetune")
        expected, saved = set(self.trainable_state()), set(checkpoint.get("state_dict", {}))
        if not isinstance(course, dict) or course.get("phase") != self.phase.name or expected != saved:
            raise UserError(f"checkpoint: not one of phase {self.phase.name!r} of this run. It cannot be resumed from.")
        self._take_history(course)

    def take_results(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore history and rows of a finished phase from its checked ``last.ckpt``, instead of a fit."""
        self._take_history(checkpoint["finetune"])
        self._epoch_log.load_state_dict(checkpoint["callbacks"][self._epoch_log.state_key])

    def _take_history(self, course: Mapping[str, Any]) -> None:
        self.progress.history[:] = [(float(value), float(loss)) for value, loss in course["history"]]
