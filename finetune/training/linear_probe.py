"""Linear probe: solve the head to convergence on fixed features for several penalties, and keep the best on validation.

For each penalty ``s`` the convex problem ``mean_i w_i loss(W x_i + b, y_i) + s/2 |W|^2`` on standardised features ``x`` is solved
by L-BFGS in float64 on the whole training split, from the strongest penalty to the weakest, each starting from the solution
before it. The weights ``w`` are 1, or where images are drawn by weight (``data.balanced``) how often an epoch would draw each on
average. This is the first step of LP-FT (Kumar et al. 2022, arXiv 2202.10054).

The penalty with the smallest validation loss is chosen, measured with the loss that was minimised. On frozen features of four
sets of real pictures (128 px, one split; the standard error of an accuracy is 2.5, 1.8, 1.8 and 1.1 points), three rules for
choosing the penalty gave these test accuracies in % and test losses; *one error* is the strongest penalty within one standard
error of the best accuracy:

| network, pictures (test images) | iterations | by accuracy | one error | by loss |
|---|---|---|---|---|
| EfficientNet-Lite0, photographs (259) | 178 | 80.7, 0.606 | 79.2, 0.805 | 80.7, 0.606 |
| EfficientNet-Lite0, solar cells (400) | 399 | 86.8, 0.319 | 86.5, 0.352 | 86.8, 0.319 |
| EfficientNet-Lite0, drawings (748) | 246 | 63.2, 1.065 | 62.3, 1.068 | 63.2, 1.065 |
| EfficientNet-Lite0, clothes (1,000) | 237 | 85.8, 0.592 | 84.9, 0.853 | 87.0, 0.385 |
| embedded ResNet-18, photographs | 282 | 59.8, 1.340 | 60.6, 1.156 | 60.2, 1.216 |
| embedded ResNet-18, solar cells | 603 | 82.0, 0.418 | 80.2, 0.527 | 83.0, 0.408 |
| embedded ResNet-18, drawings | 384 | 55.5, 1.372 | 55.5, 1.372 | 55.2, 1.424 |
| embedded ResNet-18, clothes | 426 | 83.9, 0.457 | 82.9, 0.594 | 83.9, 0.457 |
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from finetune.activation_cache.cache import ActivationCache
from finetune.activation_cache.solver_memory import BLOCK_LOGITS
from finetune.data.datamodule import ImageDataModule
from finetune.data.sampling import Rows
from finetune.metrics import build_metrics, split_metrics, update_metrics
from finetune.models.classifier import Classifier
from finetune.models.heads.linear import LinearHead
from finetune.one_thread import one_thread
from finetune.phases import ResolvedPhase
from finetune.results import EpochRow, Offset, ProbeResult
from finetune.training.double_precision import device_of_doubles, doubles
from finetune.training.phase_result import Trained

# N = images, D = features, K = classes, S = strengths

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(2, -9, -1))
# bound on the gradient's largest entry, for a mean loss in nats; as in scikit-learn's LogisticRegression
_TOLERANCE = 1e-4
# iterations of L-BFGS for one penalty
_MAX_ITERATIONS = 1000
# features read from the cache at once
_ROWS_READ = 2**16
# share of the median deviation: that of a feature that fires in one of hundreds of training images is a thousandth of it
_LEAST_SCALE = 0.1


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of all penalties, for features that are not standardised.

    Args:
        weight_SKD: Weights.
        bias_SK: Biases.
        losses: Training loss of each head, without the penalty.
        iterations: Iterations of L-BFGS for each head.
        gradients: Largest entry of the last gradient of each head.
    """

    weight_SKD: Tensor
    bias_SK: Tensor
    losses: tuple[float, ...]
    iterations: tuple[int, ...]
    gradients: tuple[float, ...]

    @property
    def converged(self) -> bool:
        """Return whether every gradient is within the tolerance."""
        return max(self.gradients) <= _TOLERANCE


def feature_scale(features_ND: Tensor) -> Tensor:
    """Return the divisor of each feature: its standard deviation, with a floor; infinity if the feature never changes.

    The floor is a tenth of the median deviation. Without it, a feature that is near zero in all training images but one would
    have a tiny deviation, and an image in which it fires would get a value of a thousand.

    >>> feature_scale(torch.tensor([[0.0, 0.0, 0.0, 7.0], [2.0, 4.0, 1e-3, 7.0]]))
    tensor([1.0000, 2.0000, 0.1000,    inf])
    """
    deviation = features_ND.std(0, correction=0)
    largest = torch.maximum(features_ND.amax(0), -features_ND.amin(0))
    # rounding may give a column of equal numbers a tiny deviation
    changes = deviation > 1e-12 * largest
    if not changes.any():
        return torch.full_like(deviation, torch.inf)
    floor = _LEAST_SCALE * deviation[changes].median()
    return torch.where(changes, deviation.clamp_min(floor), torch.inf)


def solve_heads(
    features_ND: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    strengths: tuple[float, ...] = STRENGTHS,
    loss: Callable[[Tensor, Tensor], Tensor],
    sample_weights: Tensor | None = None,
    max_iterations: int = _MAX_ITERATIONS,
    overwrite_features: bool = False,
) -> Heads:
    """Solve linear heads that minimise the mean loss plus a penalty on their weights (not on their biases).

    The features are held once in double precision, and the logits of a block of images at a time, so that
    :func:`finetune.activation_cache.solver_memory.solver_bytes` tells the memory.

    Args:
        features_ND: Features of the training images.
        targets: Class numbers (N,), or zeros and ones (N, K).
        num_classes: Number of classes K.
        strengths: Penalties ``s`` on standardised features; each solution is the start of the next.
        loss: Function from logits (N, K) and targets to losses (N,), on the device of double precision.
        sample_weights: Weights (N,) of the losses, 1 on average; None weighs all alike.
        max_iterations: Iterations of L-BFGS for one penalty, at most.
        overwrite_features: Whether features in double precision may be standardised in place, which saves a copy.
    """
    from scipy.optimize import minimize

    device = device_of_doubles(features_ND.device)
    x_ND, targets = doubles(features_ND), targets.to(device)
    if x_ND is features_ND and not overwrite_features:
        x_ND = x_ND.clone()
    mean, scale = x_ND.mean(0), feature_scale(x_ND)
    x_ND.sub_(mean).div_(scale)
    count, width = x_ND.shape

    weights_N = None if sample_weights is None else sample_weights.to(device, torch.float64)
    rows = max(1, BLOCK_LOGITS // num_classes)
    blocks = [slice(start, start + rows) for start in range(0, count, rows)]

    def mean_loss(packed: Tensor, block: slice) -> Tensor:
        """Return the part of the mean loss that comes from a block of images."""
        losses_N = loss(x_ND[block] @ packed[:, :width].T + packed[:, width], targets[block])
        mean = losses_N.mean() if weights_N is None else (weights_N[block] * losses_N).mean()
        return mean * (len(losses_N) / count)

    def value_and_gradient(flat: npt.NDArray[np.float64], strength: float) -> tuple[float, npt.NDArray[np.float64]]:
        packed = torch.tensor(flat, device=device).view(num_classes, width + 1).requires_grad_()
        value, gradient = 0.0, torch.zeros_like(packed)
        for block in blocks:
            with torch.enable_grad():
                part = mean_loss(packed, block)
                if block.start == 0:
                    part = part + strength / 2 * packed[:, :width].square().sum()
            value += part.item()
            gradient += torch.autograd.grad(part, packed)[0]
        return value, gradient.flatten().cpu().numpy()

    start = np.zeros(num_classes * (width + 1))
    weights, biases, losses, iterations, gradients = [], [], [], [], []
    # products this small gain nothing from a second thread, which makes them 40 times slower on a busy machine
    with one_thread():
        for strength in strengths:
            solution = minimize(
                value_and_gradient,
                start,
                args=(strength,),
                jac=True,
                method="L-BFGS-B",
                options={
                    "maxiter": max_iterations,
                    "maxfun": 2 * max_iterations,
                    "gtol": _TOLERANCE,
                    # the gradient decides: stop on the loss only if float64 cannot lower it further
                    "ftol": 64 * np.finfo(np.float64).eps,
                },
            )
            start = solution.x
            packed = torch.tensor(solution.x, device=device).view(num_classes, width + 1)
            weight_KD = packed[:, :width] / scale
            weights.append(weight_KD.float())
            biases.append((packed[:, width] - weight_KD @ mean).float())
            with torch.no_grad():
                losses.append(sum(mean_loss(packed, block).item() for block in blocks))
            iterations.append(int(solution.nit))
            gradients.append(float(np.abs(solution.jac).max()))
    return Heads(
        weight_SKD=torch.stack(weights).to(features_ND.device),
        bias_SK=torch.stack(biases).to(features_ND.device),
        losses=tuple(losses),
        iterations=tuple(iterations),
        gradients=tuple(gradients),
    )


@dataclass(frozen=True, kw_only=True)
class Solved:
    """The outcome of a linear probe.

    Args:
        strengths: Penalties that were tried.
        metrics: Scalar validation metrics for each penalty.
        objectives: The training loss, measured on the validation images, for each penalty; the smallest is chosen.
        train_loss: Training loss of the chosen head.
        iterations: Iterations of L-BFGS for each penalty.
        converged: Whether every gradient is within the tolerance.
    """

    strengths: tuple[float, ...]
    metrics: list[dict[str, float]]
    objectives: tuple[float, ...]
    train_loss: float
    iterations: tuple[int, ...]
    converged: bool

    @property
    def best(self) -> int:
        """Return the position of the chosen penalty; the strongest of equally good ones."""
        return smallest(self.objectives)

    @property
    def result(self) -> ProbeResult:
        """Return the entry of ``results.json``."""
        return ProbeResult(
            strengths=self.strengths,
            chosen=self.strengths[self.best],
            val_loss=tuple(metrics["loss"] for metrics in self.metrics),
            val_acc=tuple(metrics["acc"] for metrics in self.metrics),
            val_objective=tuple(self.objectives),
            iterations=tuple(self.iterations),
            converged=self.converged,
        )


def smallest(values: Sequence[float]) -> int:
    """Return the position of the smallest finite value, the first of equal ones.

    >>> smallest([float("nan"), 2.0, 1.0, 1.0])
    2
    """
    return min(range(len(values)), key=lambda at: (not math.isfinite(values[at]), values[at]))


def _tensor_or_none(values: npt.NDArray[np.float64] | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


def _features(cache: ActivationCache, rows: Rows, *, views: int, device: torch.device) -> Tensor:
    """Return the cached features of all views (views * N, D) in double precision, with no other copy of them all."""
    features_ND = None
    for view in range(views):
        for start in range(0, len(rows), _ROWS_READ):
            some = rows[start : start + _ROWS_READ]
            part_BD = cache.train(np.full(len(some), view, np.int64), some).float().flatten(1)
            if features_ND is None:
                features_ND = torch.empty(views * len(rows), part_BD.shape[1], dtype=torch.float64, device=device)
            at = view * len(rows) + start
            features_ND[at : at + len(some)] = part_BD.to(device)
    assert features_ND is not None, "the training split has images"
    return features_ND


def probe_phase(
    *,
    classifier: Classifier,
    cache: ActivationCache,
    data: ImageDataModule,
    loss: nn.Module,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
    views: int | None,
) -> Solved:
    """Solve the head of a classifier in place.

    Args:
        classifier: Network with a linear head.
        cache: Cache of the features.
        data: Data module that gives rows and targets.
        loss: Training loss, from logits (N, K) and targets to losses (N,); its mean on the validation images chooses the
            penalty.
        device: Device that computes.
        context: Function that returns the context of the run's precision.
        views: Training views of each image, all of which are trained on; None trains on the evaluation view.
    """
    head = classifier.head
    assert isinstance(head, LinearHead)
    cache.prepare(device=device, context=context)
    index = data.source.index
    train, val = index.rows("train"), index.rows("val")
    features = _features(cache, train, views=views or 1, device=device_of_doubles(device))
    targets = torch.from_numpy(index.targets[train]).repeat(views or 1, *[1] * (index.targets.ndim - 1)).to(device)
    exact = device_of_doubles(device)
    drawn, counts = (_tensor_or_none(data.mean_draws(split)) for split in ("train", "val"))
    heads = solve_heads(
        features,
        targets,
        num_classes=len(classifier.classes),
        loss=loss.to(exact),
        sample_weights=None if drawn is None else drawn.repeat(views or 1),
        overwrite_features=True,
    )
    del features  # a large part of the memory
    held_out, answers = cache.val(val).float().flatten(1).to(device), torch.from_numpy(index.targets[val]).to(device)
    metrics, objectives = [], []
    for weight_KD, bias_K in zip(heads.weight_SKD, heads.bias_SK, strict=True):
        logits_NK = held_out @ weight_KD.to(device).T + bias_K.to(device)
        counted = build_metrics(len(classifier.classes), multi_label=classifier.multi_label).to(device)
        update_metrics(counted, logits=logits_NK, targets=answers)
        metrics.append(split_metrics(counted).scalars())
        losses_N = loss(doubles(logits_NK), answers.to(exact))
        objectives.append(float(losses_N.mean() if counts is None else (counts.to(exact) * losses_N).mean()))
    best = smallest(objectives)
    with torch.no_grad():
        head.fc.weight.copy_(heads.weight_SKD[best])
        head.fc.bias.copy_(heads.bias_SK[best])
    return Solved(
        strengths=STRENGTHS,
        metrics=metrics,
        objectives=tuple(objectives),
        train_loss=heads.losses[best],
        iterations=heads.iterations,
        converged=heads.converged,
    )


def solve_phase(
    *,
    classifier: Classifier,
    phase: ResolvedPhase,
    cache: ActivationCache,
    data: ImageDataModule,
    loss: nn.Module,
    monitor: str,
    trainer: pl.Trainer,
    views: int | None,
    offset: Offset,
) -> Trained:
    """Run :func:`probe_phase` as a phase of a run, and return what it came to, with one row of metrics.

    Args:
        classifier: Network with a linear head, which is changed in place.
        phase: Phase that trains only the head.
        cache: Cache of the features.
        data: Data module that gives rows and targets.
        loss: Training loss, from logits (N, K) and targets to losses (N,).
        monitor: Validation metric that the result reports.
        trainer: Trainer that gives device and precision.
        views: Training views of each image; None trains on the evaluation view.
        offset: Epochs and optimizer steps of the phases before.
    """
    solved = probe_phase(
        classifier=classifier,
        cache=cache,
        data=data,
        loss=loss,
        device=trainer.strategy.root_device,
        context=trainer.precision_plugin.forward_context,
        views=views,
    )
    chosen = solved.metrics[solved.best]
    row = EpochRow(
        phase=phase.name,
        epoch=offset.epochs,
        step=offset.steps + sum(solved.iterations),
        values={"train/loss": solved.train_loss, **{f"val/{name}": value for name, value in chosen.items()}},
    )
    return Trained(
        rows=(row,),
        steps=sum(solved.iterations),
        rates={},
        best_epoch=0,
        best=chosen[monitor.removeprefix("val/")],
        probe=solved.result,
    )
