"""Baselines on frozen features: largest class, nearest neighbours, and accuracy against the number of labels."""

import time

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.data.index import Index
from finetune.data.sampling import shuffled
from finetune.errors import UserError
from finetune.training.linear_probe import smallest, solve_heads
from finetune.training.losses import TrainingLoss

# N = images, D = features, K = classes

NEIGHBOURS = (1, 5, 20)
PER_CLASS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# three strengths are enough for a curve
_STRENGTHS = (0.1, 0.01, 0.001)


def _targets(index: Index, split: str) -> Tensor:
    if index.multi_label:
        raise UserError("finetune ladder: compares accuracies of one label per image; this data has several.")
    return torch.from_numpy(index.targets[index.rows(split)])


def baselines(features: dict[str, Tensor], index: Index, *, seconds: float) -> dict[str, dict[str, float]]:
    """Return validation and test accuracy of the largest class, and of k nearest neighbours by cosine, k chosen on validation.

    Args:
        features: Features (N, D) of ``train``, ``val`` and ``test``.
        index: Index with the targets.
        seconds: Time that computing the features took, in seconds.
    """
    targets = {split: _targets(index, split) for split in features}
    largest = int(torch.bincount(targets["train"]).argmax())
    guess = {split: float((targets[split] == largest).double().mean()) for split in ("val", "test")}
    began = time.monotonic()
    by_k = {k: {split: _knn(features, targets, split, k) for split in ("val", "test")} for k in NEIGHBOURS}
    best = max(by_k, key=lambda k: (by_k[k]["val"], -k))
    return {
        "majority": {**guess, "seconds": 0.0, "trained": 0},
        "knn": {**by_k[best], "seconds": round(seconds + time.monotonic() - began, 3), "trained": 0, "k": best},
    }


def _knn(features: dict[str, Tensor], targets: dict[str, Tensor], split: str, k: int) -> float:
    """Return the accuracy of a vote of the k nearest training images, each weighted by its similarity."""
    stored = torch.nn.functional.normalize(features["train"], dim=1)
    classes = int(targets["train"].max()) + 1
    right = 0
    for queries, answers in zip(torch.split(features[split], 1024), torch.split(targets[split], 1024), strict=True):
        similar = torch.nn.functional.normalize(queries, dim=1) @ stored.T
        nearest = similar.topk(min(k, len(stored)), dim=1)
        votes = torch.zeros(len(queries), classes)
        votes.scatter_add_(1, targets["train"][nearest.indices], nearest.values.clamp_min(1e-6))
        right += int((votes.argmax(1) == answers).sum())
    return right / len(targets[split])


def learning_curve(features: dict[str, Tensor], index: Index, *, seed: int) -> list[dict[str, float]]:
    """Return the test accuracy of a probe for each number of training images per class; validation loss chooses the strength.

    Args:
        features: Features (N, D) of ``train``, ``val`` and ``test``.
        index: Index with the targets.
        seed: Seed of the choice of images; a larger subset contains the smaller ones.
    """
    targets = {split: _targets(index, split) for split in features}
    classes = len(index.classes)
    order = shuffled(np.arange(len(targets["train"])), seed, "curve")
    by_class = [order[targets["train"].numpy()[order] == k] for k in range(classes)]
    most = max(len(rows) for rows in by_class)
    points = []
    for per_class in [*(n for n in PER_CLASS if n < most), most]:
        rows = torch.from_numpy(np.concatenate([rows[:per_class] for rows in by_class]))
        heads = solve_heads(
            features["train"][rows],
            targets["train"][rows],
            num_classes=classes,
            strengths=_STRENGTHS,
            loss=TrainingLoss(),
        )
        logits = {
            split: [
                features[split] @ weight.T + bias for weight, bias in zip(heads.weight_SKD, heads.bias_SK, strict=True)
            ]
            for split in ("val", "test")
        }
        best = smallest([float(cross_entropy(logits_NK, targets["val"])) for logits_NK in logits["val"]])
        accuracy = float((logits["test"][best].argmax(1) == targets["test"]).double().mean())
        points.append({"per_class": per_class, "images": len(rows), "test": accuracy})
    return points
