"""How long each phase will take on this machine, from a calibration of about two seconds.

Measured are the parts: reading and viewing an image, the frozen prefix, a training step and a forward pass, each on a few
images of the right size in the run's own precision. From them follows the time of the phase as it will be run, with its cache and
its loader processes. Nothing is trained: the network is what it was.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from finetune.activation_cache.frozen_prefix import Prefix, in_half_precision
from finetune.activation_cache.policy import CachePolicy
from finetune.data.datamodule import ImageDataModule
from finetune.data.loading import threads_here
from finetune.data.transforms import View, eval_view, train_view
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for
from finetune.models.modes import evaluating
from finetune.models.slices import PIXELS
from finetune.training.freezing import apply_phase
from finetune.training.linear_probe import solve_heads
from finetune.training.lr_finder import unchanged
from finetune.training.module import OptimizerFactory
from finetune.training.param_groups import build_param_groups
from finetune.training.phases import Phase

# of the whole calibration, shared by its measurements
BUDGET_S = 2.0
# images in a measured batch: of small images a real batch, of large ones enough for the kernels to be those of a real one
_FEWEST, _MOST = 8, 64
# what the training loop does around a step, and around an epoch (validation's start, a line of the log), in
# steps of a lone linear head, which like them are all Python and dispatch; estimates, which tests/benchmarks/plan_time.py checks
_LOOP_STEPS, _EPOCH_STEPS = 6.0, 250.0
# how much longer an image is read beside a network that computes on the same cores; and bytes of a checkpoint written a second:
# estimates likewise
_CROWDED, _WRITTEN_BYTES = 1.8, 450e6
# what each further thread adds to one that reads images: two read 1.67 times as many
_BESIDE = 0.67
# copies of a trainable weight in the two checkpoints of an epoch: itself in both, and what the optimizer keeps of it
_COPIES = 4
# that a solver needs: 305, 450 and the most it may, 500, on three sets, so their mean; and features to measure it on, at most
_SOLVER_ITERATIONS, _SOLVED_ROWS = 420, 2000
_cross_entropy = partial(torch.nn.functional.cross_entropy, reduction="none")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Expected wall time of a phase.

    Args:
        cache_s: Of filling the cache, were it empty; 0 without one.
        train_s: Of the rest.
    """

    cache_s: float
    train_s: float

    @property
    def seconds(self) -> float:
        """In all."""
        return self.cache_s + self.train_s

    def to_plain(self) -> dict[str, float]:
        """Plain JSON values."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class _Speed:
    """What the machine does with one image, in seconds."""

    workers: int
    threads: int
    cores: int
    on_cpu: bool

    def of(self, read_s: float, compute_s: float) -> float:
        """Of an image that threads read before the network computes, or loader processes meanwhile.

        On a CPU these want the same cores.
        """
        if not self.workers:
            return read_s / (1 + _BESIDE * (self.threads - 1)) + compute_s
        return max(read_s / self.workers, compute_s + (_CROWDED * read_s / self.cores if self.on_cpu else 0.0))


def forecast(
    *,
    classifier: Classifier,
    phases: Sequence[Phase],
    caches: Sequence[CachePolicy],
    data: ImageDataModule,
    trainer: pl.Trainer,
    make_optimizer: Callable[[Phase], OptimizerFactory],
) -> list[Forecast]:
    """One forecast a phase.

    Args:
        classifier: The network at its start.
        phases: The schedule.
        caches: For each of them, whether it trains on cached activations.
        data: For images and loader processes.
        trainer: For device and precision alone.
        make_optimizer: For a phase.
    """
    return _Calibration(classifier, data, trainer, shares=2 + 3 * len(phases)).of(phases, caches, make_optimizer)


class _Calibration:
    def __init__(self, classifier: Classifier, data: ImageDataModule, trainer: pl.Trainer, *, shares: int) -> None:
        self._device = trainer.strategy.root_device
        self._context: Callable[[], AbstractContextManager[Any]] = trainer.precision_plugin.forward_context
        self._classifier = classifier.to(self._device, memory_format=memory_format_for(classifier.input_spec))  # type: ignore[call-overload]
        self._data, self._share_s = data, BUDGET_S / shares
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._speed = _Speed(
            workers=data.num_workers,
            threads=threads_here(data.source),
            cores=cores,
            on_cpu=self._device.type == "cpu",
        )
        spec = classifier.input_spec
        count = min(_MOST, max(_FEWEST, PIXELS // math.prod(spec.size)))
        self._images = torch.randint(0, 256, (count, spec.channels, *spec.size), dtype=torch.uint8).to(self._device)
        self._rows = {split: len(data.source.index.rows(split)) for split in ("train", "val")}

    def of(
        self,
        phases: Sequence[Phase],
        caches: Sequence[CachePolicy],
        make_optimizer: Callable[[Phase], OptimizerFactory],
    ) -> list[Forecast]:
        eval_read_s = self._read(eval_view(self._classifier.input_spec))
        head_step_s = self._head_step()
        found = []
        with unchanged(self._classifier):
            for phase, choice in zip(phases, caches, strict=True):
                apply_phase(self._classifier, phase)
                read_s = self._read(train_view(self._classifier.input_spec, augment=phase.augment))
                found.append(self._phase(phase, choice, read_s, eval_read_s, head_step_s, make_optimizer(phase)))
        return found

    def _phase(
        self,
        phase: Phase,
        choice: CachePolicy,
        read_s: float,
        eval_read_s: float,
        head_step_s: float,
        make_optimizer: OptimizerFactory,
    ) -> Forecast:
        train, val = self._rows["train"], self._rows["val"]
        steps = phase.epochs * -(-train // phase.batch_size)
        share = min(1.0, phase.max_steps * phase.accumulate / steps) if phase.max_steps else 1.0
        epochs = share * phase.epochs
        cache_s = 0.0
        if choice.cached_stage is not None:
            with self._context():
                prefix = Prefix(self._classifier, choice.cached_stage, fold=in_half_precision(self._device))
            with self._context():
                prefix_s = self._timed(lambda: prefix(self._images)) / len(self._images)
            augmented = (choice.views or 0) * train
            plain = val if choice.views else train + val
            cache_s = augmented * self._speed.of(read_s, prefix_s) + plain * self._speed.of(eval_read_s, prefix_s)
        if phase.solver == "lbfgs":
            return Forecast(cache_s=cache_s, train_s=self._solve((choice.views or 1) * train))
        trained, given = self._trained(choice, phase)
        step_s = self._timed(self._step(trained, given, phase, make_optimizer)) / len(given)
        with torch.inference_mode(), evaluating(self._classifier), self._context():
            forward_s = self._timed(lambda: trained(given)) / len(given)
        if choice.cached_stage is None:
            step_s, forward_s = self._speed.of(read_s, step_s), self._speed.of(eval_read_s, forward_s)
        heads = max(1, len(phase.lr_trials))
        written = sum(p.numel() * p.element_size() for p in self._classifier.parameters() if p.requires_grad)
        epoch_s = _EPOCH_STEPS * head_step_s + _COPIES * written / _WRITTEN_BYTES
        loop_s = _LOOP_STEPS * head_step_s * share * steps + epoch_s * epochs
        return Forecast(cache_s=cache_s, train_s=heads * epochs * (train * step_s + val * forward_s) + loop_s)

    def _solve(self, rows: int) -> float:
        """Seconds of a solver on that many features, from a few of its iterations on some."""
        some = min(rows, _SOLVED_ROWS)
        classes, width = len(self._classifier.classes), self._classifier.backbone.num_features
        features_ND = torch.randn(some, width, device=self._device)
        targets_N = torch.arange(some, device=self._device) % classes
        solve = partial(solve_heads, features_ND, targets_N, num_classes=classes, loss=_cross_entropy)
        # of two numbers of iterations, so that what comes before the first one falls out
        long, short = (self._timed(partial(solve, max_iterations=most)) for most in (12, 2))
        return (short + (long - short) / 10 * _SOLVER_ITERATIONS) * rows / some

    def _trained(self, choice: CachePolicy, phase: Phase) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """What is computed at each step of a phase, and a batch for it."""
        if choice.cached_stage is None:
            return self._classifier, self._images[: phase.batch_size]
        with self._context():
            activations = Prefix(self._classifier, choice.cached_stage, fold=False)(self._images).clone()
        rest = nn.Sequential(self._classifier.backbone.split(choice.cached_stage)[1], self._classifier.head)
        # activations are small: whole batches of them
        repeated = activations.repeat(-(-phase.batch_size // len(activations)), *[1] * (activations.ndim - 1))
        return rest, repeated[: phase.batch_size]

    def _step(
        self, trained: Callable[[Tensor], Tensor], given: Tensor, phase: Phase, make_optimizer: OptimizerFactory
    ) -> Callable[[], object]:
        groups = build_param_groups(self._classifier, rates=phase.rates(), weight_decay=phase.weight_decay)
        optimizer = make_optimizer(groups)

        def step() -> None:
            with self._context():
                loss = trained(given).float().logsumexp(1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()

        return step

    def _head_step(self) -> float:
        """Seconds of a training step of a lone linear head: the price of Python and dispatch on this machine."""
        head = nn.Linear(8, 2)
        optimizer = torch.optim.AdamW(head.parameters())
        given = torch.zeros(4, 8)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            head(given).sum().backward()
            optimizer.step()

        return self._timed(step)

    def _timed(self, call: Callable[[], object]) -> float:
        """Seconds of a call, the least of as many as fit into its share of the budget; the first one warms up.

        The least, because whatever else the machine does adds to a call and takes nothing away; two at least.
        """
        call()
        taken: list[float] = []
        deadline = time.perf_counter() + self._share_s
        while len(taken) < 2 or time.perf_counter() < deadline:
            began = time.perf_counter()
            call()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            taken.append(time.perf_counter() - began)
        return min(taken)

    def _read(self, view: View) -> float:
        """Seconds in which one process reads and views an image."""
        rows = self._some_rows()
        return self._timed(lambda: view(self._data.source.read(next(rows), at_least=view.at_least)))

    def _some_rows(self) -> Iterator[int]:
        """Training rows from all over the index, without end."""
        rows = self._data.source.index.rows("train")
        stride = max(1, math.isqrt(len(rows)))
        spread = [int(rows[at]) for first in range(stride) for at in range(first, len(rows), stride)]
        return itertools.cycle(spread)
