"""Find a learning rate by a range test that scales all groups together, so that their ratios are kept.

The range test of Smith (2017, arXiv 1506.01186, section 3.3): train for a few steps while the rate grows by a constant factor
per step, and see where the loss falls. Afterwards the network is restored exactly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from finetune.data.datamodule import ImageDataModule
from finetune.data.loading import Batch
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.training.freezing import apply_phase, module_mode_flags
from finetune.training.interruption import Interruption, disable_lightning_signal_handlers
from finetune.training.low_rank import low_rank
from finetune.training.param_groups import OptimizerFactory
from finetune.training.phase_module import FitSettings, PhaseModule
from finetune.training.quiet_lightning import QUIET_TRAINER

Curve = npt.NDArray[np.float64]
# fastai's constants (callback/schedule.py): smoothing of the running loss, and the multiple of its minimum that ends the test
_KEPT, _DIVERGED = 0.98, 4.0


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """Holds the rates and losses of a range test.

    Args:
        phase: Phase whose rates were swept.
        stage: Trainable stage with the highest rate, which stands for all of them.
        rates: Rate of that stage at each step.
        losses: Training loss of each step.
        diverged: Whether the range test ended early, because the loss was not finite or far above its minimum.
    """

    phase: ResolvedPhase
    stage: str
    rates: Curve
    losses: Curve
    diverged: bool

    @property
    def smoothed(self) -> Curve:
        """Return the smoothed losses (see :func:`smooth`)."""
        return smooth(self.losses)

    def suggestions(self) -> dict[str, float]:
        """Return the rate that each rule suggests; empty if the loss never fell."""
        places = {"valley": valley(self.smoothed), "steepest": steepest(np.log(self.rates), self.smoothed)}
        return {name: float(self.rates[at]) for name, at in places.items() if at is not None}

    def stage_rates(self, rate: float) -> dict[str, float]:
        """Return the rate of every trainable stage when the fastest stage has the given rate."""
        rates = self.phase.rates()
        return {stage: own * (rate / rates[self.stage]) for stage, own in rates.items()}

    def overrides(self, rate: float, number: int) -> list[str]:
        """Return the overrides that set these rates, by the same settings that the phase uses.

        Args:
            rate: Rate of the fastest stage.
            number: Position of the phase in the schedule, from 0.
        """
        factor = rate / self.phase.rates()[self.stage]
        where = f"schedule.phases.{number}"
        if self.phase.lr_slice is not None:
            words = [f"{where}.lr_slice=[{','.join(_short(factor * edge) for edge in self.phase.lr_slice)}]"]
        else:
            words = [f"{where}.lr={_short(factor * self.phase.lr)}"]
        return words + [f"{where}.stage_lr.{s}={_short(factor * own)}" for s, own in self.phase.stage_lr.items()]


def _short(rate: float) -> str:
    return repr(float(f"{rate:.3g}"))


def smooth(losses: Curve) -> Curve:
    """Return a weighted mean around each step, with a Gaussian whose width is a 25th of the steps.

    fastai plots a running mean, which lags: its value at a rate comes from lower rates. After the test both sides are known,
    so no lag is needed. Losses are clipped to twice those at the start, so that the divergence at the end does not affect the
    rates before it.
    """
    losses = np.minimum(losses, 2 * losses[: max(len(losses) // 10, 1)].mean())
    at = np.arange(len(losses))
    weights = np.exp(-0.5 * ((at[:, None] - at[None]) / max(len(losses) / 25, 0.5)) ** 2)
    means: Curve = weights @ losses / weights.sum(1)
    return means


def steepest(log_rates: Curve, losses: Curve) -> int | None:
    """Return the step at which the loss falls fastest in the logarithm of the rate, before its lowest point.

    >>> steepest(np.arange(6.0), np.array([3.0, 2.9, 2.0, 1.8, 1.8, 9.0]))
    2
    """
    lowest = int(losses.argmin())
    slopes = np.gradient(losses, log_rates)[: lowest + 1] if len(losses) > 1 else np.zeros(1)
    return int(slopes.argmin()) if lowest > 0 and slopes.min() < 0 else None


def valley(losses: Curve) -> int | None:
    """Return the middle of the longest subsequence of steps in which the loss falls (fastai's valley).

    The rule uses the whole fall and not one point of it, so that a single steep step does not decide. Unlike fastai's, it
    leaves out the first and the last twentieth of the fall: at rates that are too low to matter the loss also falls, slowly
    and for many steps.

    >>> valley(np.array([5.0, 5.1, 4.0, 3.0, 2.0, 1.0, 7.0]))
    3
    """
    lengths, before = np.ones(len(losses), dtype=np.int64), np.full(len(losses), -1)
    for at in range(1, len(losses)):
        higher = np.flatnonzero(losses[:at] > losses[at])
        if len(higher):
            previous = higher[lengths[higher].argmax()]
            lengths[at], before[at] = lengths[previous] + 1, previous
    path = [int(lengths.argmax())]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    if len(path) < 3:
        return None
    bottom, top = losses[path[0]], losses[path[-1]]
    margin = 0.05 * (top - bottom)
    slope = [at for at in path if bottom + margin <= losses[at] <= top - margin] or path
    return slope[len(slope) // 2]


class RangeTestModule(PhaseModule):
    """Trains a phase at rates that grow by a constant factor per step, until the loss diverges.

    Args:
        lowest: Rate of the fastest stage at the first step.
        highest: Rate of that stage at the last step.
        steps: Number of optimizer steps.
        classifier: Network at the start of the phase.
        phase: Phase to train.
        optimizer: Function that makes the optimizer from named groups.
        loss: Training loss, from logits (B, K) and targets to losses (B,).
        seed: Seed of the run.
        batches_per_epoch: Training batches in an epoch.
    """

    def __init__(
        self,
        *,
        lowest: float,
        highest: float,
        steps: int,
        classifier: Classifier,
        phase: ResolvedPhase,
        optimizer: OptimizerFactory,
        loss: nn.Module,
        seed: int,
        batches_per_epoch: int,
    ) -> None:
        super().__init__(
            classifier=classifier,
            phase=phase,
            optimizer=optimizer,
            loss=loss,
            settings=FitSettings(monitor="val/loss", seed=seed),
            batches_per_epoch=batches_per_epoch,
        )
        self.total_steps = steps
        self._lowest, self._growth = lowest, (highest / lowest) ** (1 / max(steps - 1, 1))
        self._batch_losses: list[float] = []
        self._running, self._lowest_running = 0.0, math.inf
        self.losses: list[float] = []
        self.diverged = False

    def rate_at(self, step: int) -> float:
        """Return the rate of the fastest stage at a step."""
        return float(self._lowest * self._growth**step)

    def rates_at(self, step: int) -> dict[str, float]:
        """Return the learning rate of each stage at a step: those of the phase, all scaled by one factor."""
        rates = self.phase.rates()
        factor = self.rate_at(step) / max(rates.values())
        return {stage: rate * factor for stage, rate in rates.items()}

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return no callbacks: a range test is meant to diverge, and writes nothing."""
        return []

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Record the loss of the batch."""
        step = super().training_step(batch, batch_idx)
        self._batch_losses.append(float(step["loss"].detach()))
        return step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Decide at the end of an optimizer step whether to continue."""
        if self.trainer.global_step > len(self.losses):
            loss = sum(self._batch_losses) / len(self._batch_losses)
            self._batch_losses = []
            self.diverged = not math.isfinite(loss)
            if not self.diverged:
                self.losses.append(loss)
                self._running = _KEPT * self._running + (1 - _KEPT) * loss
                running = self._running / (1 - _KEPT ** len(self.losses))
                self._lowest_running = min(running, self._lowest_running)
                self.diverged = running > _DIVERGED * self._lowest_running
        self.trainer.should_stop = self.diverged or len(self.losses) >= self.total_steps


@contextmanager
def restoring_state(classifier: Classifier) -> Iterator[None]:
    """Restore weights, buffers, modes and gradient flags exactly after the block."""
    tensors = dict(classifier.named_parameters()) | dict(classifier.named_buffers())
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    flags = {name: parameter.requires_grad for name, parameter in classifier.named_parameters()}
    modes, generator = module_mode_flags(classifier), torch.get_rng_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in [*classifier.named_parameters(), *classifier.named_buffers()]:
                tensor.copy_(values[name])
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None
        for name, module in classifier.named_modules():
            module.training = modes[name]
        torch.set_rng_state(generator)


def find_rate(
    *,
    classifier: Classifier,
    data: ImageDataModule,
    phase: ResolvedPhase,
    seed: int,
    make_trainer: Callable[..., pl.Trainer],
    make_optimizer: Callable[[ResolvedPhase], OptimizerFactory],
    make_loss: Callable[[ResolvedPhase], nn.Module],
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
) -> RangeTest:
    """Raise the rates of a phase on its own first batches; the network is left unchanged.

    Args:
        classifier: Network with the weights from which to start.
        data: Batches of the run.
        phase: Phase whose stages, optimizer, loss, mixing and clipping are used.
        seed: Seed of the run; batches and views are those that the phase would train on.
        make_trainer: Function that makes a Trainer for one device.
        make_optimizer: Function that returns the optimizer factory of a phase.
        make_loss: Function that makes the loss of a phase.
        lowest: Rate of the fastest stage at the first step.
        highest: Rate of that stage at the last step.
        steps: Number of optimizer steps.
    """
    batches = data.batches_per_epoch(phase.batch_size)
    with low_rank(classifier, phase, seed=seed, merge=False), restoring_state(classifier):
        apply_phase(classifier, phase)
        data.begin_phase(name=phase.name, batch_size=phase.batch_size, augment=phase.augment)
        module = RangeTestModule(
            lowest=lowest,
            highest=highest,
            steps=steps,
            classifier=classifier,
            phase=phase,
            optimizer=make_optimizer(phase),
            loss=make_loss(phase),
            seed=seed,
            batches_per_epoch=batches,
        )
        trainer = make_trainer(
            max_epochs=-(-steps // phase.steps_per_epoch(batches)),
            accumulate_grad_batches=phase.accumulate,
            gradient_clip_val=phase.gradient_clip,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            **QUIET_TRAINER,
        )
        disable_lightning_signal_handlers(trainer)
        with Interruption("nothing is kept; the same command begins again"):
            trainer.fit(module, datamodule=data)
    rates = phase.rates()
    return RangeTest(
        phase=phase,
        stage=max(rates, key=lambda stage: rates[stage]),
        rates=np.array([module.rate_at(step) for step in range(len(module.losses))]),
        losses=np.array(module.losses),
        diverged=module.diverged,
    )


def table(test: RangeTest) -> list[dict[str, float]]:
    """Return one row per step: the rate of every stage, the loss and the smoothed loss."""
    stages: Sequence[dict[str, float]] = [test.stage_rates(float(rate)) for rate in test.rates]
    return [
        {"step": step, "loss": float(loss), "smoothed": float(mean)} | {f"lr/{s}": rate for s, rate in rates.items()}
        for step, (rates, loss, mean) in enumerate(zip(stages, test.losses, test.smoothed, strict=True))
    ]
