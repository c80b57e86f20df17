"""The metrics of a split, all from torchmetrics."""

from typing import Any

import torch
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
)


def build_metrics(num_classes: int) -> MetricCollection:
    """Accuracy, macro F1, recall of each class, confusion matrix and expected calibration error, on probabilities (B, K).

    ``val/acc`` counts images, not classes: accuracy is micro-averaged. A class without an image in the split does not
    enter the macro F1 (torchmetrics leaves out classes with neither targets nor predictions).
    """
    collection = MetricCollection(
        {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "f1_macro": MulticlassF1Score(num_classes, average="macro"),
            "recall": MulticlassRecall(num_classes, average="none"),
            "confusion": MulticlassConfusionMatrix(num_classes),
            # Guo et al. 2017, arXiv 1706.04599: 15 bins, l1
            "ece": MulticlassCalibrationError(num_classes, n_bins=15, norm="l1"),
        },
        # the confusion matrix has another state than the others; groups are found at the first update by comparing
        # states, which would make the first batch of a run cost more than the others
        compute_groups=[["acc"], ["f1_macro", "recall"], ["confusion"], ["ece"]],
    )
    collection.add_metrics({"loss": MeanMetric()})
    return collection


def update_metrics(
    metrics: MetricCollection, *, logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor
) -> None:
    """Count one batch.

    Args:
        metrics: As built by :func:`build_metrics`.
        logits: Scores (B, K).
        targets: Class numbers (B,).
        losses: Loss of each image (B,).
    """
    probabilities = logits.float().softmax(1)
    for name, metric in metrics.items(keep_base=True, copy_state=False):
        if name == "loss":
            metric.update(losses.float())
        else:
            metric.update(probabilities, targets)


def plain_metrics(metrics: MetricCollection) -> dict[str, Any]:
    """Values as plain numbers and lists; scalars alone are what a logger takes."""
    return {name: value.tolist() for name, value in metrics.compute().items()}
