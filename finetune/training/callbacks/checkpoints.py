"""Write the checkpoints of a phase, and read them without running code from the file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from finetune.atomic_files import atomic_path
from finetune.checksums import remedy, verify
from finetune.data.datamodule import ImageDataModule
from finetune.errors import UserError, first_line, type_in_words
from finetune.file_errors import read_error
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.safe_files import check_zip
from finetune.training.callbacks.phase_stopping import PhaseStopping
from finetune.training.interruption import Interruption
from finetune.training.metrics_csv import MetricsCsv
from finetune.training.param_groups import OptimizerState, phase_param_groups
from finetune.training.phase_module import PhaseModule

LAST, BEST = "last.ckpt", "best.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints atomically, and reads them without unpickling objects.

    Lightning 2.6 writes to ``$TMPDIR`` and moves the file, which truncates and copies if that is another file system: a kill
    or a full disk then loses the previous checkpoint too (lightning#21253).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint atomically."""
        # to an open file: given a path, torch writes the file's name into it, and equal contents would differ in bytes
        with atomic_path(path) as part, part.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read plain containers and tensors, whatever ``weights_only`` is."""
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the contents of a checkpoint, on the CPU.

    Raises:
        UserError: The file is not a checkpoint, is damaged, or holds objects that would run code when read.
        FileError: The file cannot be read from the disk.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such checkpoint. {remedy(Path(path))}.")
    check_zip(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        if (failed := read_error(error, path)) is not None:
            raise failed from error
        why = first_line(error)
        raise UserError(
            f"{path}: cannot be read as a checkpoint of tensors and plain values. {why} {remedy(Path(path))}."
        ) from error
    verify(Path(path))
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a checkpoint. It holds {type_in_words(loaded)}. {remedy(Path(path))}.")
    return loaded


def by_parameter(state: Mapping[str, Any], classifier: Classifier, phase: ResolvedPhase) -> OptimizerState:
    """Return the optimizer state of a checkpoint by parameter name; the phase must have been applied."""
    groups = phase_param_groups(classifier, phase)
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    ordered = [names[id(parameter)] for group in groups for parameter in group["params"]]
    return {ordered[number]: values for number, values in state["state"].items()}


class PhaseCheckpoints(Checkpoint):
    """Writes ``last.ckpt`` at the end of each epoch, and ``best.ckpt`` when the monitored metric has improved.

    The end of an epoch means after its validation and after every other callback. A step in between is written only if neither
    a validation nor the end of an epoch is due: Lightning skips those when it resumes from such a step.

    A signal stops a run here, once a step has been written. Before and during a validation the checkpoint is marked as due for
    validation, and a resumed run begins with that. The checkpoint of a finished phase is marked too: nothing is left to train,
    though the Trainer's own counters may not show it.

    Args:
        folder: Folder of the phase.
        metrics_csv: ``metrics.csv``, written just before ``last.ckpt``, which holds the same rows.
        every_n_steps: Optimizer steps between checkpoints inside an epoch; None writes them only at the ends of epochs.
        interruption: Handler of the signals that stop the run; None never stops.
    """

    def __init__(
        self,
        *,
        folder: Path,
        metrics_csv: MetricsCsv,
        every_n_steps: int | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        super().__init__()
        self._folder, self._metrics_csv, self._every = folder, metrics_csv, every_n_steps
        self._interruption = interruption
        # number of validation batches that every process has
        self._shared_val_batches = 0
        # True from a stop before a validation until the resumed run has finished that validation
        self._validation_due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal wait for the end of a step from here on."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        if self._validation_due and isinstance(data, ImageDataModule):
            data.drop_iterator()
        if self._interruption is not None:
            self._interruption.begin_training()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal stop the run at once from here on: nothing is left to write."""
        if self._interruption is not None:
            self._interruption.end_training()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint inside an epoch if one is due or a signal stops the run."""
        assert isinstance(pl_module, PhaseModule)
        inside = batch_idx + 1 < trainer.num_training_batches
        steps_whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        validates = trainer.val_check_batch is not None and (batch_idx + 1) % trainer.val_check_batch == 0
        # a stop that a callback has asked for ends the epoch here, by a validation
        ends_here = trainer.should_stop or trainer.global_step >= pl_module.total_steps
        if not inside or not steps_whole or validates or ends_here:
            return
        steps = (batch_idx + 1) // trainer.accumulate_grad_batches
        due = self._every is not None and steps % self._every == 0
        stop = self._must_stop(trainer)
        if due or stop:
            pl_module.require_finite()
            trainer.save_checkpoint(self._folder / LAST)
        if stop:
            self._stop(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before a validation if a signal asks for it."""
        if trainer.state.fn != "fit" or self._interruption is None:
            return
        if self._validation_due:
            # counted by the run that stopped; reset, so that a resumed run writes the same as an uninterrupted one
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()
        batches = torch.tensor(float(sum(trainer.num_val_batches)), device=trainer.strategy.root_device)
        self._shared_val_batches = int(trainer.strategy.reduce(batches, reduce_op="min"))
        self._stop_in_validation(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Stop inside a validation if a signal asks for it, at a batch that every process has."""
        if trainer.state.fn == "fit" and batch_idx < self._shared_val_batches:
            self._stop_in_validation(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that no validation is due."""
        self._validation_due = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoints of an epoch, the best first, so that ``last.ckpt`` never refers to a missing one."""
        assert isinstance(pl_module, PhaseModule)
        if pl_module.progress.improved:
            trainer.strategy.save_checkpoint(pl_module.best_checkpoint(), self._folder / BEST)
        self._metrics_csv.write(pl_module.rows)
        trainer.save_checkpoint(self._folder / LAST)
        if self._must_stop(trainer):
            self._stop(trainer, pl_module)

    def _must_stop(self, trainer: Trainer) -> bool:
        return self._interruption is not None and self._interruption.agreed(trainer) > 0

    def _stop(self, trainer: Trainer, module: PhaseModule, when: str = "") -> None:
        assert self._interruption is not None
        self._interruption.where = (
            f"at step {trainer.global_step} of {module.total_steps} {self._interruption.where}{when}"
        )
        raise self._interruption.interruption_error()

    def _stop_in_validation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint that is due for validation, and stop.

        A phase that stops after this validation finishes it first, unless the step alone tells that it stops: Lightning would
        continue training when it resumes here.
        """
        assert isinstance(pl_module, PhaseModule)
        at_end_of_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        stops_again = at_end_of_epoch and PhaseStopping.is_over(trainer, pl_module)
        if (trainer.should_stop and not stops_again) or not self._must_stop(trainer):
            return
        self._validation_due = True
        trainer.save_checkpoint(self._folder / LAST)
        self._stop(trainer, pl_module, ", before its validation")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save whether the phase is finished or due for validation.

        A validation that is due is marked as started with no batch done: from that state Lightning resumes one.
        """
        assert isinstance(pl_module, PhaseModule)
        # a callback of the user's may have stopped it
        over = PhaseStopping.is_over(trainer, pl_module) or pl_module.progress.stop or trainer.should_stop
        checkpoint["callbacks"][self.state_key] = {
            "validation_due": self._validation_due,
            "finished": over and not self._validation_due,
        }
        if self._validation_due:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress = {"total": begun, "current": dict(begun), "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore whether the resumed run begins with a validation."""
        self._validation_due = bool(state_dict["validation_due"])
