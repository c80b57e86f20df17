"""The LightningModule of one phase of a run: keyed batches of images or cached activations, to the same bits when resumed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from finetune.activation_cache.frozen_prefix import Prefix, in_half_precision
from finetune.activation_cache.policy import last_frozen_stage
from finetune.checksums import remedy
from finetune.data.loading import Batch
from finetune.data.sampling import key
from finetune.errors import RunError, UserError
from finetune.metrics import build_metrics, plain_metrics, right_answers, update_metrics
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for
from finetune.models.slices import run_in_chunks
from finetune.training.callbacks.checkpoint_contents import check_progress, naming
from finetune.training.callbacks.ema import StageEma
from finetune.training.callbacks.gradient_norms import GradientNorms
from finetune.training.callbacks.guards import Watchers
from finetune.training.epoch_history import Progress
from finetune.training.eval_outputs import SplitOutputs, Validation
from finetune.training.freezing import tensors_of
from finetune.training.losses import build_mixer
from finetune.training.param_groups import OptimizerFactory
from finetune.training.phases import Phase
from finetune.training.staged_module import StagedModule

PREFIX = "classifier."


def _connected() -> bool:
    """Whether several processes train together, and are connected."""
    return dist.is_available() and dist.is_initialized()


class PhaseModule(StagedModule):
    """Trains the stages of one phase on the batches of a run.

    ``apply_phase`` must have set gradient flags and modes before ``Trainer.fit``; the module itself never changes them.

    Args:
        classifier: The network.
        phase: What to train, and how.
        optimizer: Makes the optimizer from named groups.
        loss: Of training.
        seed: Seed of the run.
        monitor: Metric that decides which epoch was best.
        steps_per_epoch: Training batches in an epoch.
        phase_number: Position in the schedule, from 0.
        offset: Epochs and optimizer steps of the phases before, for the axes of logs.
        file_of: Gives the file of a row, for messages.
        carried: Optimizer state by parameter name, from the phase before.
        cached_stage: The stage whose cached output the batches hold in place of images; None where they hold images.
        compiled: Compile what trains.
        keep_validation: Keep what the validation of the epoch that the phase hands on found, where one process sees all of
            it.
    """

    def __init__(
        self,
        *,
        classifier: Classifier,
        phase: Phase,
        optimizer: OptimizerFactory,
        loss: nn.Module,
        seed: int,
        monitor: str,
        steps_per_epoch: int,
        phase_number: int = 0,
        offset: tuple[int, int] = (0, 0),
        file_of: Callable[[int], str] = str,
        carried: dict[str, dict[str, Any]] | None = None,
        cached_stage: str | None = None,
        compiled: bool = False,
        keep_validation: bool = False,
    ) -> None:
        optimizer_steps = -(-steps_per_epoch // phase.accumulate)
        super().__init__(
            classifier,
            phase,
            optimizer=optimizer,
            loss=loss,
            total_steps=min(phase.epochs * optimizer_steps, phase.max_steps or phase.epochs * optimizer_steps),
            warmup_steps=round(phase.warmup_epochs * optimizer_steps),
        )
        # a checkpoint holds the trainable stages only; the others are in the phase's start.safetensors
        self.strict_loading = False
        self.phase_number = phase_number
        self.progress = Progress(monitor=monitor, patience=phase.patience)
        self.metrics = build_metrics(len(classifier.classes), multi_label=classifier.multi_label)
        self.rows: list[dict[str, Any]] = []
        # of the next evaluation: what is collected; of the last one: metrics as plain values, and what was collected
        self.outputs = SplitOutputs()
        self.evaluated: dict[str, Any] = {}
        self.gathered: dict[str, torch.Tensor] = {}
        # of the epoch whose weights the phase hands on; what is collected for the next one
        self._keep_validation = keep_validation
        self.validated: Validation | None = None
        self._validating: SplitOutputs | None = None
        self._seed, self._carried = seed, carried
        self._offset = offset
        # in a tuple, so that the modules are not registered a second time under other names
        self._cached_stage = cached_stage or last_frozen_stage(classifier, phase)
        self._rest = None if self._cached_stage is None else (classifier.backbone.split(self._cached_stage)[1],)
        # cached: batches hold the prefix's output; else it is made here, in the precision of the fit
        self._is_cached = cached_stage is not None
        self._prefix: Prefix | None = None
        # from images or cached activations to features, where there is a graph; in a tuple for the same reason
        self._compiled: tuple[Callable[[torch.Tensor], torch.Tensor]] | None = None
        self._compiles = compiled
        self._mixer = build_mixer(mixup=phase.mixup, cutmix=phase.cutmix, num_classes=len(classifier.classes))
        self._ema = StageEma(classifier, stages=phase.train, decay=phase.ema_decay) if phase.ema_decay else None
        self._raw: dict[str, torch.Tensor] | None = None
        self._watchers = Watchers(classifier=classifier, phase=phase, file_of=file_of)
        self._gradients = GradientNorms(classifier, stages=phase.train)
        # in a checkpoint that is written before the validation of an epoch, because the run stops there; and resumed from it
        self.validation_due = False
        # between reading a checkpoint and training on
        self._restoring = False
        # loss sum, right answers, images: of the epoch so far
        self._sums = torch.zeros(3, dtype=torch.float64)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer, with the state that the phase before hands on."""
        optimizer = super().configure_optimizers()
        if self._carried:
            for name, parameter in self.classifier.named_parameters():
                if parameter.requires_grad and name in self._carried:
                    optimizer.state[parameter] = self._carried[name]
        return optimizer

    def optimizer_state(self) -> dict[str, dict[str, Any]]:
        """The optimizer's state by parameter name, to be carried into the next phase."""
        optimizer = self.trainer.optimizers[0]
        return {n: optimizer.state[p] for n, p in self.classifier.named_parameters() if p in optimizer.state}

    def plateau_factor(self) -> float:
        """Return the factor by which ``plateau`` has reduced the rates so far: it follows the validation metric."""
        return self.progress.plateau_factor()

    @property
    def averages(self) -> dict[str, torch.Tensor] | None:
        """The averaged weights by name; None where the phase averages none."""
        return None if self._ema is None else self._ema.averages

    @contextmanager
    def restoring(self, checkpoint: Path) -> Iterator[None]:
        """Around a fit from a checkpoint, which is named where Lightning cannot take it back.

        Raises:
            UserError: It cannot.
        """
        try:
            with naming(checkpoint):
                yield
        except (UserError, RunError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not self._restoring:
                raise
            why = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
            raise UserError(
                f"{checkpoint}: cannot be resumed from. {type(error).__name__}: {why}. {remedy(checkpoint)}."
            ) from error

    def on_train_start(self) -> None:
        """Lightning has taken everything back."""
        self._restoring = False

    def on_fit_start(self) -> None:
        """Move what is not a parameter to the device, and make the frozen prefix ready."""
        self._prepare_prefix()
        if self._compiles:
            trained = self.classifier.embed if self._rest is None else self._rest[0]
            self._compiled = (torch.compile(trained),)
        self._sums = self._sums.to(self.device if self.device.type != "mps" else "cpu")

    def _prepare_prefix(self) -> None:
        if self._cached_stage is not None and not self._is_cached:
            with self.trainer.precision_plugin.forward_context():
                self._prefix = Prefix(self.classifier, self._cached_stage, fold=in_half_precision(self.device))

    def on_train_epoch_start(self) -> None:
        """Start the sums of an epoch; not called when an epoch is resumed inside, so they go on from the checkpoint."""
        self._sums.zero_()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Check the position, seed the step's randomness, write the rates."""
        position = batch.position
        if (position.epoch, position.step) != (self.current_epoch, batch_idx):
            raise RunError(
                f"batch {position.step} of epoch {position.epoch} arrived where batch {batch_idx} of epoch "
                f"{self.current_epoch} was due. The loaders and the Trainer have lost step; please report this."
            )
        self._watchers.before_batch()
        torch.manual_seed(
            key(self._seed, "step", self.phase.name, position.epoch, position.step, self.trainer.global_rank)
        )
        self.set_rates()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of what a batch holds: images, or the cached activations of the frozen prefix."""
        if not self._is_cached and self._prefix is None and self._compiled is None:
            return run_in_chunks(self.classifier, images)
        logits_BK: torch.Tensor = self.classifier.head(self.features(images))
        return logits_BK

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of what a batch holds."""
        compiled = self._compiled if torch.is_grad_enabled() else None
        if self._rest is None or not (self._is_cached or self._prefix):
            return compiled[0](images) if compiled else run_in_chunks(self.classifier.embed, images)
        activations = images if self._prefix is None else self._prefix(images)
        if activations.ndim == 4:
            activations = activations.contiguous(memory_format=memory_format_for(self.classifier.input_spec))
        features_BD: torch.Tensor = (compiled or self._rest)[0](activations)
        return features_BD

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Mean loss over the whole batch, this process's share of it."""
        images, targets = batch.images, batch.targets
        if self._mixer is not None:
            images, targets = self._mixer(images.float() / 255, targets)
        logits_BK = self.logits(images)
        losses_B = self.loss(logits_BK, targets)
        with torch.no_grad():
            right = right_answers(logits_BK, batch.targets).sum()
            self._sums += torch.stack([losses_B.sum().double(), right.double(), torch.ones_like(right) * len(losses_B)])
        # DDP takes the mean over processes, whose shares of a batch may differ by one image
        loss: torch.Tensor = losses_B.sum() * (batch.position.world / batch.position.global_size)
        self.after_loss(loss, batch)
        return loss

    def after_loss(self, loss: torch.Tensor, batch: Batch) -> None:
        """Refuse a loss that is not a number."""
        self._watchers.after_loss(loss, batch, self.trainer.global_step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Look whether each group learns, and how large its gradient is."""
        self._watchers.before_step(optimizer)
        self._gradients.before_step()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step, and the averages right after it, so that a checkpoint written after any step has both."""
        super().optimizer_step(*args, **kwargs)
        if self._ema is not None:
            self._ema.update()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """End the phase at its last step; Lightning then validates and ends the epoch as usual."""
        if self.trainer.global_step >= self.total_steps:
            self.trainer.should_stop = True

    def on_validation_start(self) -> None:
        """Validate the averaged weights where there are any."""
        self.metrics.reset()
        fits = self.trainer.state.fn == "fit"
        if self._ema is not None and fits:
            self._raw = self._ema.swap_in()
        self._validating = SplitOutputs() if fits and self._keep_validation and self.trainer.world_size == 1 else None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch."""
        self._count(batch, self._validating)

    def on_validation_epoch_end(self) -> None:
        """Make the epoch's validation values known to the progress and to callbacks."""
        metrics = plain_metrics(self.metrics)
        values = {f"val/{name}": value for name, value in metrics.items()}
        scalars = {name: value for name, value in values.items() if isinstance(value, float)}
        if self.trainer.state.fn == "fit":
            if self.progress.monitor not in scalars:
                raise UserError(
                    f"monitor={self.progress.monitor!r}: not a validation metric. Metrics: {', '.join(sorted(scalars))}."
                )
            self.progress.history.append((scalars[self.progress.monitor], scalars["val/loss"]))
            if self._validating is not None and (self.progress.improved or self.phase.restore == "last"):
                self.validated = Validation(
                    step=self.trainer.global_step, metrics=metrics, outputs=self._validating.gather()
                )
        # on every process, for callbacks of the user's: the values are those of all images already
        self.log_dict(scalars, logger=False, batch_size=1)

    def on_validation_end(self) -> None:
        """The raw weights back."""
        self.validation_due = False
        if self._raw is not None:
            assert self._ema is not None
            self._ema.swap_out(self._raw)
            self._raw = None

    def on_train_epoch_end(self) -> None:
        """Log the epoch, hold that nothing frozen moved, stop where patience ran out."""
        self._watchers.after_epoch(self.current_epoch)
        loss, right, images = self._sums_by_process().sum(0).tolist()
        row: dict[str, Any] = {
            "phase": self.phase.name,
            "epoch": self._offset[0] + self.current_epoch,
            "step": self._offset[1] + self.trainer.global_step,
            "train/loss": loss / images,
            **({} if self._mixer is not None else {"train/acc": right / images}),
            **{f"{name}": float(value) for name, value in self.trainer.callback_metrics.items() if "val/" in name},
            **{f"lr/{group['name']}": group["lr"] for group in self.trainer.optimizers[0].param_groups},
            **{f"grad/{stage}": norm for stage, norm in self._gradients.epoch().items()},
        }
        self.rows.append(row)
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        for logger in self.loggers:
            logger.log_metrics(numbers, step=row["step"])
        # the last step has said so already, but for a phase resumed behind it
        if self.progress.stop or self.trainer.global_step >= self.total_steps:
            self.trainer.should_stop = True

    def _sums_by_process(self) -> torch.Tensor:
        """The sums of every process (world, 3), the same everywhere."""
        if not _connected():
            return self._sums.clone()[None]
        gathered = [torch.zeros_like(self._sums) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, self._sums)
        return torch.stack(gathered)

    def trainable_state(self) -> dict[str, torch.Tensor]:
        """Weights and buffers of the stages of this phase, under the names they have in a checkpoint."""
        return {PREFIX + name: tensor for name, tensor in tensors_of(self.classifier, self.phase.train).items()}

    def best_checkpoint(self) -> dict[str, Any]:
        """The weights that validation saw: the averaged ones where there are any."""
        raw = self._ema.swap_in() if self._ema is not None else None
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.trainable_state().items()}
        if raw is not None:
            assert self._ema is not None
            self._ema.swap_out(raw)
        return {"state_dict": state, "finetune": self._state()}

    def _state(self) -> dict[str, Any]:
        return {
            "phase": self.phase.name,
            "history": [list(entry) for entry in self.progress.history],
            "rows": list(self.rows),
            # of this phase: nothing is left to train, though the Trainer's own counters may not say so
            "validation_due": self.validation_due,
            "finished": not self.validation_due
            and (self.trainer.global_step >= self.total_steps or self.progress.stop),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trainable stages only, and what the phase's course depends on."""
        kept = set(self.trainable_state())
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in kept}
        checkpoint["finetune"] = self._state() | {
            # apart: adding them up here would round otherwise than at the epoch's end
            "sums": self._sums_by_process().tolist(),
            "ema": self._ema.averages if self._ema is not None else None,
            "gradients": self._gradients.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the course of the phase back.

        Raises:
            UserError: The checkpoint is of another phase, or holds other tensors.
        """
        self._restoring = True
        check_progress(checkpoint["loops"]["fit_loop"], self.trainer.fit_loop.state_dict())
        state = checkpoint.get("finetune")
        wanted, found = set(self.trainable_state()), set(checkpoint.get("state_dict", {}))
        if not isinstance(state, dict) or state.get("phase") != self.phase.name or wanted != found:
            raise UserError(f"checkpoint: not one of phase {self.phase.name!r} of this run. It cannot be resumed from.")
        self.progress.history = [(float(value), float(loss)) for value, loss in state["history"]]
        self.rows = list(state["rows"])
        self.validation_due = bool(state.get("validation_due"))
        self._gradients.load(state.get("gradients"))
        sums = torch.tensor(state["sums"], dtype=torch.float64)
        if len(sums) == self.trainer.world_size:
            self._sums = sums[self.trainer.global_rank]
        elif self.trainer.global_rank == 0:
            self._sums = sums.sum(0)
        if self._ema is not None:
            self._ema.averages = {name: tensor.to(self.device) for name, tensor in state["ema"].items()}

    def on_test_start(self) -> None:
        """Start a count, with the frozen prefix as in the fit."""
        self.metrics.reset()
        self._prepare_prefix()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch and keep what the network says of it."""
        self._count(batch, self.outputs)

    def _count(self, batch: Batch, outputs: SplitOutputs | None) -> None:
        features_BD = self.features(batch.images)
        logits_BK = self.classifier.head(features_BD)
        update_metrics(self.metrics, logits=logits_BK, targets=batch.targets)
        if outputs is not None:
            outputs.add(
                rows=batch.rows,
                targets=batch.targets,
                probabilities_BK=self.classifier.probabilities(logits_BK),
                features_BD=features_BD,
            )

    def on_test_epoch_end(self) -> None:
        """Compute while the processes are still connected."""
        self.evaluated = plain_metrics(self.metrics)
        self.gathered = self.outputs.gather()
