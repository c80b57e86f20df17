"""Train one head for each of several learning rates side by side on cached features; validation chooses one.

On fixed features, trying a rate costs only the training of a head: the features are read once and shared by all heads. Each head
starts from the same weights and sees the same batches and dropout masks as in a separate run, so the chosen head equals the one
that a run at its rate would have ended with.
"""

import copy
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from finetune.activation_cache.cache import ActivationCache
from finetune.data.datamodule import ImageDataModule
from finetune.data.loading import Batch
from finetune.data.sampling import key
from finetune.distributed import is_rank_zero
from finetune.errors import RunError
from finetune.metrics import build_metrics, correct_predictions, split_metrics, update_metrics
from finetune.models.classifier import Classifier
from finetune.phases import HEAD, ResolvedPhase
from finetune.results import EpochRow, Offset, TrialResult
from finetune.training.callbacks.checkpoint_contents import (
    ContentsError,
    check_count,
    check_history,
    check_optimizer,
    check_rows,
    check_sums,
    check_tensors,
    errors_naming,
)
from finetune.training.callbacks.checkpoints import AtomicCheckpointIO, read_checkpoint
from finetune.training.double_precision import doubles
from finetune.training.epoch_history import EpochHistory
from finetune.training.freezing import in_training_mode
from finetune.training.interruption import Interruption
from finetune.training.lr_schedules import scale
from finetune.training.param_groups import OptimizerFactory, build_param_groups
from finetune.training.phase_result import Trained


@dataclass(kw_only=True)
class Trial:
    """A head in training at one of the rates.

    Args:
        rate: Peak learning rate.
        head: Head that trains.
        optimizer: Optimizer of the head's weights.
        progress: History of its epochs.
        rows: Row of metrics for each of its epochs.
        kept: Weights of the epoch that it passes on.
        sums: Loss, correct predictions and images of the epoch so far.
        lost: Whether its loss or its weights became NaN or infinite.
    """

    rate: float
    head: nn.Module
    optimizer: torch.optim.Optimizer
    progress: EpochHistory
    rows: list[EpochRow] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    lost: bool = False

    @property
    def trains(self) -> bool:
        """Return whether the head still trains: its loss is finite, and its patience has not run out."""
        return not self.lost and not self.progress.stop

    def note_if_lost(self) -> None:
        """Note that the head is lost where its loss or its weights are not finite."""
        if not (math.isfinite(self.sums[0]) and all(weight.isfinite().all() for weight in self.head.parameters())):
            self.lost = True

    @property
    def result(self) -> TrialResult:
        """Return the best epoch as an entry of the results; a head whose loss became NaN has none."""
        if self.lost:
            return TrialResult(lr=self.rate, best=None, best_epoch=None)
        epoch = self.progress.best_epoch
        return TrialResult(lr=self.rate, best=self.progress.history[epoch][0], best_epoch=epoch)


class RateTrials:
    """Trains the heads of a phase with ``lr_trials``.

    Args:
        classifier: Network with the phase applied; all heads start as copies of its head.
        phase: Phase that trains only the head.
        loss: Training loss, from logits (B, K) and targets to losses (B,).
        monitor: Validation metric that chooses the head.
        make_optimizer: Function that makes the optimizer of the phase.
        trainer: Trainer that gives device and precision.
        seed: Seed of the run; part of the key of each step's dropout masks.
        cached_stage: Stage whose output is cached.
    """

    def __init__(
        self,
        *,
        classifier: Classifier,
        phase: ResolvedPhase,
        loss: nn.Module,
        monitor: str,
        make_optimizer: OptimizerFactory,
        trainer: pl.Trainer,
        seed: int,
        cached_stage: str,
    ) -> None:
        # stages between the cached activations and the head, if the network cannot be cut after its last stage
        self._rest = classifier.backbone.split(cached_stage)[1]
        self._device, self._context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        self._classifier, self._phase = classifier.to(self._device), phase
        self._loss, self._seed, self._monitor = loss.to(self._device), seed, monitor
        self._make_optimizer = make_optimizer
        self.trials: list[Trial] = []
        first = classifier.head
        for rate in phase.lr_trials:
            # groups are built from a classifier's parameters, so each head becomes the classifier's head in turn
            classifier.head = copy.deepcopy(first)
            groups = build_param_groups(classifier, rates={HEAD: rate}, weight_decay=phase.weight_decay)
            progress = EpochHistory(monitor=monitor, patience=phase.patience)
            self.trials.append(
                Trial(rate=rate, head=classifier.head, optimizer=make_optimizer(groups), progress=progress)
            )
        classifier.head = first

    def epoch(
        self,
        val: Iterable[Batch],
        *,
        epoch: int,
        steps: int,
        total: int,
        offset: Offset,
        before_step: Callable[[int], None],
    ) -> int:
        """Train and validate all heads for an epoch, or for the rest of one.

        Args:
            val: Batches of the validation split.
            epoch: Number of the epoch in the phase, from 0.
            steps: Optimizer steps of the phase so far.
            total: Optimizer steps of the whole phase.
            offset: Epochs and optimizer steps of the phases before.
            before_step: Function called before each step with the number of steps so far.

        Returns:
            Optimizer steps of the phase after this epoch.
        """
        for batch in self._train:
            if steps >= total:
                break
            before_step(steps)
            for trial in self.trials:
                if trial.trains:
                    self._step(trial, batch, step=steps, total=total)
            steps += 1
        for trial in self.trials:
            if trial.trains:
                self._validate(trial, val, epoch=epoch, steps=steps, offset=offset)
        return steps

    def begin(self, data: ImageDataModule, *, epoch: int, batch: int) -> None:
        """Start the phase's batches at a batch of an epoch; later epochs follow."""
        self._train = data.train_batches(epoch, batch)
        self._warmup = round(self._phase.warmup_epochs * data.batches_per_epoch(self._phase.batch_size))

    def _step(self, trial: Trial, batch: Batch, *, step: int, total: int) -> None:
        phase = self._phase
        # the same dropout masks as in a run of this head alone
        torch.manual_seed(key(self._seed, "step", phase.name, batch.position.epoch, batch.position.step, 0))
        factor = scale(
            phase.lr_schedule,
            step=step,
            total_steps=total,
            warmup_steps=self._warmup,
            plateau_factor=trial.progress.plateau_factor(),
        )
        for group in trial.optimizer.param_groups:
            group["lr"] = trial.rate * factor
        for module in trial.head.modules():
            module.training = in_training_mode(module, HEAD, phase)
        features, targets = batch.images.to(self._device), batch.targets.to(self._device)
        with self._context():
            logits_BK = trial.head(self._rest(features))
            losses_B = self._loss(logits_BK, targets)
            loss = losses_B.sum() / len(losses_B)
        trial.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if phase.gradient_clip:
            torch.nn.utils.clip_grad_norm_(trial.head.parameters(), phase.gradient_clip)
        trial.optimizer.step()
        right = correct_predictions(logits_BK, targets).sum()
        for place, value in enumerate((float(doubles(losses_B.detach()).sum()), float(right), len(losses_B))):
            trial.sums[place] += value

    @torch.no_grad()
    def _validate(self, trial: Trial, val: Iterable[Batch], *, epoch: int, steps: int, offset: Offset) -> None:
        loss, right, images = trial.sums
        trial.note_if_lost()
        trial.sums = [0.0, 0.0, 0.0]
        if trial.lost:
            return
        trial.head.eval()
        metrics = build_metrics(len(self._classifier.classes), multi_label=self._classifier.multi_label)
        metrics = metrics.to(self._device)
        for batch in val:
            with self._context():
                logits_BK = trial.head(self._rest(batch.images.to(self._device)))
            update_metrics(metrics, logits=logits_BK, targets=batch.targets.to(self._device))
        values = {f"val/{name}": value for name, value in split_metrics(metrics).scalars().items()}
        trial.progress.history.append((values[self._monitor], values["val/loss"]))
        trial.rows.append(
            EpochRow(
                phase=self._phase.name,
                epoch=offset.epochs + epoch,
                step=offset.steps + steps,
                values={
                    "train/loss": loss / images,
                    "train/acc": right / images,
                    **values,
                    **{f"lr/{group['name']}": group["lr"] for group in trial.optimizer.param_groups},
                },
            )
        )
        if self._phase.restore == "last" or trial.progress.best_epoch == epoch:
            trial.kept = {name: tensor.detach().clone() for name, tensor in trial.head.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Return the state of the heads for a checkpoint."""
        for trial in self.trials:
            # inside an epoch too: the next validation would
            trial.note_if_lost()
        return {
            "trials": [
                {
                    "head": trial.head.state_dict(),
                    "optimizer": trial.optimizer.state_dict(),
                    "history": [list(entry) for entry in trial.progress.history],
                    "rows": [row.to_plain() for row in trial.rows],
                    "kept": trial.kept,
                    "sums": trial.sums,
                    "lost": trial.lost,
                }
                for trial in self.trials
            ]
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the heads from a checkpoint.

        Raises:
            ContentsError: The state does not fit the heads of this phase.
        """
        saved_trials = state.get("trials")
        if not (isinstance(saved_trials, list) and len(saved_trials) == len(self.trials)):
            raise ContentsError(f"It does not hold {len(self.trials)} heads")
        for trial, saved in zip(self.trials, saved_trials, strict=True):
            self._check(trial, saved)
            trial.head.load_state_dict(saved["head"])
            trial.optimizer.load_state_dict(saved["optimizer"])
            trial.progress.history = [(float(value), float(loss)) for value, loss in saved["history"]]
            trial.rows = [EpochRow.from_plain(row) for row in saved["rows"]]
            trial.sums, trial.lost = list(saved["sums"]), bool(saved["lost"])
            trial.kept = {name: tensor.to(self._device) for name, tensor in saved["kept"].items()}

    def _check(self, trial: Trial, saved: object) -> None:
        if not (isinstance(saved, dict) and isinstance(saved.get("lost"), bool)):
            raise ContentsError("One of its heads is not a table")
        own = trial.head.state_dict()
        check_tensors(saved.get("head"), own, name="head", finite=not saved["lost"])
        if saved.get("kept") != {}:
            check_tensors(saved.get("kept"), own, name="kept")
        check_optimizer(
            saved.get("optimizer"), groups=trial.optimizer.param_groups, make_optimizer=self._make_optimizer
        )
        check_history(saved.get("history"))
        check_rows(saved.get("rows"), phase=self._phase.name)
        if len(saved["rows"]) != len(saved["history"]) or bool(saved["rows"]) != bool(saved["kept"]):
            raise ContentsError("One of its heads does not have a row for each epoch")
        check_sums(saved.get("sums"))

    def chosen(self) -> Trial:
        """Return the best head.

        Raises:
            RunError: The loss of every head became NaN.
        """
        whole = [trial for trial in self.trials if not trial.lost]
        if not whole:
            rates = ", ".join(f"{trial.rate:g}" for trial in self.trials)
            raise RunError(
                f"phase {self._phase.name!r}: the loss became NaN at every learning rate tried ({rates}). Lower them."
            )
        history = [trial.progress.history[trial.progress.best_epoch] for trial in whole]
        return whole[EpochHistory(monitor=self._monitor, history=history).best_epoch]


def train_trials(
    *,
    classifier: Classifier,
    phase: ResolvedPhase,
    cache: ActivationCache,
    data: ImageDataModule,
    loss: nn.Module,
    monitor: str,
    make_optimizer: OptimizerFactory,
    trainer: pl.Trainer,
    seed: int,
    offset: Offset,
    checkpoint: Path,
    interruption: Interruption,
) -> Trained:
    """Train the heads of all rates, put the best one into the classifier, and return what its training came to.

    When a signal stops the run, the heads and the step are saved in ``checkpoint``, and a resumed run continues from there.

    Args:
        classifier: Network with the phase applied; its head is changed in place.
        phase: Phase that trains only the head.
        cache: Cache of the features, from which the data module already reads.
        data: Data module that gives the batches of the phase.
        loss: Training loss, from logits (B, K) and targets to losses (B,).
        monitor: Validation metric that chooses the head.
        make_optimizer: Function that makes the optimizer of the phase.
        trainer: Trainer that gives device and precision.
        seed: Seed of the run.
        offset: Epochs and optimizer steps of the phases before.
        checkpoint: File of the heads, written when a signal stops the phase.
        interruption: Handler of the signals that stop the run.

    Raises:
        RunError: The loss of every head became NaN.
        Interrupted: A signal stopped the run.
    """
    cache.prepare(device=trainer.strategy.root_device, context=trainer.precision_plugin.forward_context)
    heads = RateTrials(
        classifier=classifier,
        phase=phase,
        loss=loss,
        monitor=monitor,
        make_optimizer=make_optimizer,
        trainer=trainer,
        seed=seed,
        cached_stage=cache.cached_stage,
    )
    per_epoch = data.batches_per_epoch(phase.batch_size)
    total = phase.total_steps(per_epoch)
    epoch = steps = 0
    if os.path.lexists(checkpoint):
        saved = read_checkpoint(checkpoint)
        with errors_naming(checkpoint):
            heads.load(saved)
            steps = check_count(saved.get("steps"), "steps", most=total)
            # the last epoch ends at the last step, which may lie inside it
            most = -(-steps // per_epoch) if steps == total else steps // per_epoch
            epoch = check_count(saved.get("epoch"), "epoch", most=most)
    if steps < total:
        heads.begin(data, epoch=epoch, batch=steps - epoch * per_epoch)
    # every process trains and validates on all images, even if earlier phases divided them among the processes
    val = data.eval_dataloader("val", rank=0, world=1, activations=cache)

    def stop_if_asked(done: int) -> None:
        if interruption.number:
            if is_rank_zero():
                AtomicCheckpointIO().save_checkpoint(heads.state() | {"epoch": epoch, "steps": done}, checkpoint)
            interruption.where = f"at step {done} of {total} {interruption.where}"
            interruption.check()

    interruption.begin_training()
    while steps < total and any(trial.trains for trial in heads.trials):
        steps = heads.epoch(val, epoch=epoch, steps=steps, total=total, offset=offset, before_step=stop_if_asked)
        epoch += 1
    if is_rank_zero():
        # a signal from here on raises at once, and must not lose the steps
        AtomicCheckpointIO().save_checkpoint(heads.state() | {"epoch": epoch, "steps": steps}, checkpoint)
    interruption.end_training()
    best = heads.chosen()
    classifier.head.load_state_dict(best.kept)
    return Trained(
        rows=tuple(best.rows),
        steps=best.rows[-1].step - offset.steps,
        rates={HEAD: best.rate},
        best_epoch=best.progress.best_epoch,
        best=best.progress.history[best.progress.best_epoch][0],
        trials=tuple(trial.result for trial in heads.trials),
    )
