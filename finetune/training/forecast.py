"""Forecast roughly how long each phase will take on this machine, by timing a few images as the phase will process them.

Reading a view, the frozen prefix, a training step and a forward pass are timed on one small batch each and scaled to the images
and epochs of the phase. Logging, checkpoints and start-up are left out. The network is left unchanged.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from finetune.activation_cache.frozen_prefix import Prefix, in_half_precision
from finetune.activation_cache.policy import CachePolicy
from finetune.data.datamodule import ImageDataModule
from finetune.data.loading import threads_here, views_of_rows
from finetune.data.sampling import batch_count
from finetune.data.transforms import View, eval_view
from finetune.models.chunks import PIXELS
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for
from finetune.models.modes import evaluating
from finetune.phases import ResolvedPhase
from finetune.training.freezing import apply_phase
from finetune.training.linear_probe import solve_heads
from finetune.training.low_rank import low_rank
from finetune.training.lr_finder import restoring_state
from finetune.training.param_groups import OptimizerFactory, phase_param_groups

# images in a timed batch: enough for a forward pass of about half a second, and at least two for BatchNorm
_MIN_IMAGES, _MAX_IMAGES, _READ_IMAGES = 2, 64, 8
# a call that takes longer than this many seconds is not repeated
_SLOW_S = 0.5
# iterations of the solver over all penalties, the mean of the eight rows in linear_probe's table; and the most rows timed
_SOLVER_ITERATIONS, _SOLVER_ROWS = 340, 2000

Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Expected wall time of a phase.

    Args:
        cache_s: Seconds to fill an empty cache; 0 if the phase has none.
        train_s: Seconds of training and validation.
    """

    cache_s: float
    train_s: float

    @property
    def seconds(self) -> float:
        """Return the seconds of the whole phase."""
        return self.cache_s + self.train_s


def fastest_of_three(call: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of the fastest of three calls, or of the first alone if it took longer than half a second.

    A slow call gains little from a warm start, and a plan must not take minutes on a busy machine.
    """
    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and seconds[0] <= _SLOW_S):
        began = clock()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(clock() - began)
    return min(seconds)


def forecast(
    *,
    classifier: Classifier,
    phases: Sequence[ResolvedPhase],
    cache_policies: Sequence[CachePolicy],
    data: ImageDataModule,
    trainer: pl.Trainer,
    make_optimizer: Callable[[ResolvedPhase], OptimizerFactory],
    timer: Timer = fastest_of_three,
) -> list[Forecast]:
    """Forecast the wall time of each phase.

    Args:
        classifier: Network at the start of the run.
        phases: Phases of the schedule.
        cache_policies: Cache policy of each phase.
        data: Data module that gives images and loader processes.
        trainer: Trainer that gives device and precision.
        make_optimizer: Function that returns the optimizer factory of a phase.
        timer: Function that returns the seconds of a call.
    """
    machine = _Machine(classifier, data, trainer, timer)
    with restoring_state(classifier):
        return [
            machine.phase(phase, policy, make_optimizer(phase))
            for phase, policy in zip(phases, cache_policies, strict=True)
        ]


class _Machine:
    """Times the parts of a phase on this machine."""

    def __init__(self, classifier: Classifier, data: ImageDataModule, trainer: pl.Trainer, timer: Timer) -> None:
        self._device = trainer.strategy.root_device
        self._context: Callable[[], AbstractContextManager[Any]] = trainer.precision_plugin.forward_context
        self._classifier = classifier.to(self._device, memory_format=memory_format_for(classifier.input_spec))  # type: ignore[call-overload]
        self._data, self._timer = data, timer
        spec = classifier.input_spec
        self._images = torch.randint(0, 256, (_MIN_IMAGES, spec.channels, *spec.size), dtype=torch.uint8)
        with torch.inference_mode(), evaluating(self._classifier), self._context():
            image_s = timer(lambda: self._classifier(self._images.to(self._device))) / _MIN_IMAGES
        count = min(_MAX_IMAGES, max(8, PIXELS // math.prod(spec.size)), max(_MIN_IMAGES, int(_SLOW_S / image_s)))
        repeats = (-(-count // _MIN_IMAGES), 1, 1, 1)
        self._images = self._images.repeat(repeats)[:count].to(self._device)
        # timings that several phases share
        self._known: dict[str, float] = {}
        self._rows = {split: len(data.source.index.rows(split)) for split in ("train", "val")}
        self._eval_read_s = self._read(eval_view(spec))

    def phase(self, phase: ResolvedPhase, policy: CachePolicy, make_optimizer: OptimizerFactory) -> Forecast:
        with low_rank(self._classifier, phase, seed=0, merge=False):
            return self._phase(phase, policy, make_optimizer)

    def _phase(self, phase: ResolvedPhase, policy: CachePolicy, make_optimizer: OptimizerFactory) -> Forecast:
        apply_phase(self._classifier, phase)
        train, val = self._rows["train"], self._rows["val"]
        read_s = self._read(self._data.view(policy.augment(phase)))
        cache_s = 0.0
        if policy.cached_stage is not None:
            prefix_s = self._prefix(policy.cached_stage)
            augmented = (policy.views or 0) * train
            plain = val if policy.views else train + val
            cache_s = augmented * self._beside(read_s, prefix_s) + plain * self._beside(self._eval_read_s, prefix_s)
        if phase.solves_head:
            return Forecast(cache_s=cache_s, train_s=self._solve((policy.views or 1) * train))
        network, batch = self._trained(policy, phase)
        step_s = self._timer(self._step(network, batch, phase, make_optimizer)) / len(batch)
        with torch.inference_mode(), evaluating(self._classifier), self._context():
            forward_s = self._timer(lambda: network(batch)) / len(batch)
        if policy.cached_stage is None:
            step_s, forward_s = self._beside(read_s, step_s), self._beside(self._eval_read_s, forward_s)
        steps = phase.epochs * batch_count(train, phase.batch_size)
        share = min(1.0, phase.max_steps * phase.accumulate / steps) if phase.max_steps else 1.0
        heads = max(1, len(phase.lr_trials))
        return Forecast(cache_s=cache_s, train_s=share * heads * phase.epochs * (train * step_s + val * forward_s))

    def _prefix(self, stage: str) -> float:
        """Return the seconds of the frozen prefix per image."""
        if stage not in self._known:
            with self._context():
                prefix = Prefix(self._classifier, stage, fold=in_half_precision(self._device))
                self._known[stage] = self._timer(lambda: prefix(self._images)) / len(self._images)
        return self._known[stage]

    def _beside(self, read_s: float, compute_s: float) -> float:
        """Return the seconds to read and compute an image: at the same time with loader processes, in turn without."""
        workers = self._data.num_workers
        return max(read_s / workers, compute_s) if workers else read_s + compute_s

    def _solve(self, rows: int) -> float:
        """Return the seconds of the solver on so many rows, scaled from ten iterations on some of them."""
        timed = min(rows, _SOLVER_ROWS)
        classes, width = len(self._classifier.classes), self._classifier.backbone.num_features
        features_ND = torch.randn(timed, width, device=self._device)
        targets_N = torch.arange(timed, device=self._device) % classes
        loss = partial(torch.nn.functional.cross_entropy, reduction="none")
        ten_s = self._timer(
            partial(
                solve_heads,
                features_ND,
                targets_N,
                num_classes=classes,
                strengths=(1e-3,),
                loss=loss,
                max_iterations=10,
            )
        )
        return ten_s / 10 * _SOLVER_ITERATIONS * rows / timed

    def _trained(self, policy: CachePolicy, phase: ResolvedPhase) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the network that each step of a phase computes, and a batch for it."""
        if policy.cached_stage is None:
            return self._classifier, self._images[: phase.batch_size]
        with self._context():
            activations = Prefix(self._classifier, policy.cached_stage, fold=False)(self._images).clone()
        trainable_part = nn.Sequential(self._classifier.backbone.split(policy.cached_stage)[1], self._classifier.head)
        # activations are small, so a whole batch of them fits
        repeated = activations.repeat(-(-phase.batch_size // len(activations)), *[1] * (activations.ndim - 1))
        return trainable_part, repeated[: phase.batch_size]

    def _step(
        self, network: Callable[[Tensor], Tensor], batch: Tensor, phase: ResolvedPhase, make_optimizer: OptimizerFactory
    ) -> Callable[[], object]:
        groups = phase_param_groups(self._classifier, phase)
        optimizer = make_optimizer(groups)

        def step() -> None:
            with self._context():
                loss = network(batch).float().logsumexp(1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()

        return step

    def _read(self, view: View) -> float:
        """Return the seconds to read and transform an image, with as many threads as this process reads with."""
        source = self._data.source
        rows, threads = self._spread_rows(), threads_here(source)

        def read() -> None:
            batch = list(itertools.islice(rows, _READ_IMAGES))
            views_of_rows(source, view, batch, seeds=batch, threads=threads)

        return self._timer(read) / _READ_IMAGES

    def _spread_rows(self) -> Iterator[int]:
        """Yield training rows from all over the index, without end."""
        rows = self._data.source.index.rows("train")
        stride = max(1, math.isqrt(len(rows)))
        return itertools.cycle(int(rows[at]) for first in range(stride) for at in range(first, len(rows), stride))
