"""The head solved to convergence on fixed features, for all strengths of the penalty at once; validation chooses.

A linear probe. For each penalty ``s`` the convex problem ``mean_i loss(W x_i + b, y_i) + s/2 |W|^2`` on standardised
features ``x`` is solved by L-BFGS on the whole training split; the heads of all strengths are one batched tensor, so that
the path costs little more than one head. The first step of LP-FT (Kumar et al. 2022, arXiv 2202.10054).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from finetune.activation_cache.cache import ActivationCache
from finetune.data.datamodule import ImageDataModule
from finetune.metrics import build_metrics, plain_metrics, update_metrics
from finetune.models.classifier import Classifier
from finetune.models.heads import LinearHead
from finetune.training.epoch_history import EpochHistory
from finetune.training.phase_result import PhaseResult
from finetune.training.phases import Phase

# N = images, D = features, K = classes, S = strengths

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(2, -9, -1))
# of the gradient's largest entry, where the loss is a mean in nats; as in scikit-learn's LogisticRegression
_TOLERANCE = 1e-4
_MAX_ITERATIONS = 500


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of all strengths, on features as they come (not standardised).

    Args:
        weight_SKD: Weights.
        bias_SK: Offsets.
        losses: Training loss of each, without the penalty.
        iterations: Of L-BFGS, for all together.
        gradient: Largest entry of the last gradient.
    """

    weight_SKD: Tensor
    bias_SK: Tensor
    losses: tuple[float, ...]
    iterations: int
    gradient: float

    @property
    def converged(self) -> bool:
        """Whether the gradient has vanished."""
        return self.gradient <= _TOLERANCE


def solve_heads(
    features_ND: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    strengths: tuple[float, ...] = STRENGTHS,
    loss: Callable[[Tensor, Tensor], Tensor],
    max_iterations: int = _MAX_ITERATIONS,
) -> Heads:
    """Linear heads that minimise the mean loss and a penalty on their weights (not on their offsets).

    Args:
        features_ND: Features of the training images.
        targets: Class numbers (N,), or zeros and ones (N, K).
        num_classes: Classes ``K``.
        strengths: Penalties ``s`` on standardised features.
        loss: From logits (N, K) and targets to losses (N,).
        max_iterations: Of L-BFGS.
    """
    features = features_ND.double()
    mean, scale = features.mean(0), features.std(0, correction=0)
    # a feature that never changes tells nothing; dividing by its scale would make it noise
    scale = torch.where(scale > 1e-6 * scale.max().clamp_min(1e-12), scale, torch.inf)
    x = ((features - mean) / scale).float()
    penalties = torch.tensor(strengths, device=x.device)
    count, width = len(strengths), x.shape[1]
    packed = torch.zeros(count, num_classes, width + 1, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [packed],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def losses() -> Tensor:
        weight, bias = packed[..., :width], packed[..., width]
        # one product for all strengths
        logits = (x @ weight.reshape(-1, width).T).view(len(x), count, num_classes) + bias
        return torch.stack([loss(logits[:, s], targets).mean() for s in range(count)])

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        total = losses().sum() + (penalties / 2 * packed[..., :width].square().sum((1, 2))).sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch's own
        return total

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's own
        closure()
    assert packed.grad is not None
    with torch.no_grad():
        weight = packed[..., :width].double() / scale
        bias = packed[..., width].double() - weight @ mean
        return Heads(
            weight_SKD=weight.float(),
            bias_SK=bias.float(),
            losses=tuple(losses().tolist()),
            iterations=int(optimizer.state[packed]["n_iter"]),
            gradient=float(packed.grad.abs().max()),
        )


@dataclass(frozen=True, kw_only=True)
class Solved:
    """What a probe found.

    Args:
        strengths: Penalties tried.
        metrics: Validation metrics of each that are single numbers.
        best: Which one was chosen.
        train_loss: Its training loss.
        iterations: Of L-BFGS.
        converged: Whether it did.
    """

    strengths: tuple[float, ...]
    metrics: list[dict[str, float]]
    best: int
    train_loss: float
    iterations: int
    converged: bool

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "strengths": list(self.strengths),
            "chosen": self.strengths[self.best],
            "val_loss": [metrics["loss"] for metrics in self.metrics],
            "val_acc": [metrics["acc"] for metrics in self.metrics],
            "converged": self.converged,
        }


def probe_phase(
    *,
    classifier: Classifier,
    phase: Phase,
    cache: ActivationCache,
    data: ImageDataModule,
    loss: nn.Module,
    monitor: str,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
    views: int | None,
) -> Solved:
    """Solve the head of a classifier in place.

    Args:
        classifier: With a linear head.
        phase: Trains the head alone.
        cache: Of the features.
        data: For rows and targets.
        loss: Of training, (N, K) to (N,).
        monitor: Validation metric that chooses the strength.
        device: Where to compute.
        context: Makes the context of the run's precision.
        views: Views of each training image; all of them are trained on.
    """
    head = classifier.head
    assert isinstance(head, LinearHead)
    cache.prepare(device=device, context=context)
    index = data.source.index
    train, val = index.rows("train"), index.rows("val")
    features = torch.cat(
        [cache.train(np.full(len(train), view, np.int64), train).float().flatten(1) for view in range(views or 1)]
    ).to(device)
    targets = torch.from_numpy(index.targets[train]).repeat(views or 1, *[1] * (index.targets.ndim - 1)).to(device)
    heads = solve_heads(features, targets, num_classes=len(classifier.classes), loss=loss.to(device))
    held_out, answers = cache.val(val).float().flatten(1).to(device), torch.from_numpy(index.targets[val]).to(device)
    metrics = []
    for weight_KD, bias_K in zip(heads.weight_SKD, heads.bias_SK, strict=True):
        counted = build_metrics(len(classifier.classes), multi_label=classifier.multi_label).to(device)
        update_metrics(counted, logits=held_out @ weight_KD.T + bias_K, targets=answers)
        metrics.append({name: value for name, value in plain_metrics(counted).items() if isinstance(value, float)})
    name = monitor.removeprefix("val/")
    best = EpochHistory(monitor=monitor, history=[(values[name], values["loss"]) for values in metrics]).best_epoch
    with torch.no_grad():
        head.fc.weight.copy_(heads.weight_SKD[best])
        head.fc.bias.copy_(heads.bias_SK[best])
    return Solved(
        strengths=STRENGTHS,
        metrics=metrics,
        best=best,
        train_loss=heads.losses[best],
        iterations=heads.iterations,
        converged=heads.converged,
    )


def solved_phase(
    *,
    classifier: Classifier,
    phase: Phase,
    cache: ActivationCache,
    data: ImageDataModule,
    loss: nn.Module,
    monitor: str,
    trainer: pl.Trainer,
    views: int | None,
    offset: tuple[int, int],
) -> PhaseResult:
    """:func:`probe_phase` as a phase of a run: its result with the one row of its metrics.

    Args:
        classifier: With a linear head; changed in place.
        phase: Trains the head alone.
        cache: Cache of the features.
        data: For rows and targets.
        loss: Of training.
        monitor: Validation metric that chooses the strength.
        trainer: For device and precision alone.
        views: Views of each training image.
        offset: Epochs and optimizer steps of the phases before.
    """
    solved = probe_phase(
        classifier=classifier,
        phase=phase,
        cache=cache,
        data=data,
        loss=loss,
        monitor=monitor,
        device=trainer.strategy.root_device,
        context=trainer.precision_plugin.forward_context,
        views=views,
    )
    chosen = solved.metrics[solved.best]
    row = {
        "phase": phase.name,
        "epoch": offset[0],
        "step": offset[1] + solved.iterations,
        "train/loss": solved.train_loss,
        **{f"val/{name}": value for name, value in chosen.items()},
    }
    return PhaseResult(
        name=phase.name,
        train=phase.train,
        frozen=phase.frozen,
        epochs=1,
        steps=solved.iterations,
        restored="best",
        weights="raw",
        best_epoch=0,
        best={monitor: chosen[monitor.removeprefix("val/")]},
        rates={},
        probe=solved.to_plain(),
        rows=[row],
    )
