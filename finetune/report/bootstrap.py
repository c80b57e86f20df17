"""Confidence intervals for the headline metrics: test images resampled with replacement (bootstrap, Efron 1979)."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

RESAMPLES = 1000
_PART = 100
SHARE = 0.95

Interval = tuple[float, float]


def intervals(confusion_KK: csr_array, *, seed: int = 0) -> dict[str, Interval]:
    """Compute percentile intervals of accuracy and macro F1 for single-label results.

    Drawing N images with replacement is drawing N times from the cells of the confusion matrix in proportion to their
    counts, so the cost does not grow with the number of images.

    Args:
        confusion_KK: Number of images by true (row) and predicted (column) class; at least one image.
        seed: Seed of the resampling.
    """
    cells = confusion_KK.tocoo()
    kept = cells.data > 0
    true, predicted, counts = cells.row[kept], cells.col[kept], cells.data[kept]
    images, classes = int(counts.sum()), confusion_KK.shape[0]
    hit = true == predicted
    random = np.random.default_rng(seed)
    accuracies, scores = [], []
    # in parts: for 10,000 classes the sums of all resamples would take half a gigabyte
    for _ in range(RESAMPLES // _PART):
        draws_RC = random.multinomial(images, counts / images, size=_PART)
        correct_RK = _sum_by(draws_RC[:, hit], true[hit], classes)
        support_RK = _sum_by(draws_RC, true, classes) + _sum_by(draws_RC, predicted, classes)
        accuracies.append(draws_RC[:, hit].sum(axis=1) / images)
        scores.append(_macro_f1(correct_RK, support_RK, absent_counts=False))
    return {"acc": _percentiles(np.concatenate(accuracies)), "f1_macro": _percentiles(np.concatenate(scores))}


def multi_label_intervals(
    targets_NK: npt.NDArray[np.bool_], predicted_NK: npt.NDArray[np.bool_], *, seed: int = 0
) -> dict[str, Interval]:
    """Compute percentile intervals of exact match and macro F1 for multi-label results."""
    images = len(targets_NK)
    right_N = (targets_NK == predicted_NK).all(axis=1)
    random = np.random.default_rng(seed)
    both_NK = (targets_NK & predicted_NK).astype(np.float32)
    support_NK = targets_NK.astype(np.float32) + predicted_NK
    accuracies, scores = [], []
    for _ in range(RESAMPLES):
        times_N = np.bincount(random.integers(0, images, images), minlength=images).astype(np.float32)
        accuracies.append(times_N @ right_N / images)
        scores.append(_macro_f1(times_N[None] @ both_NK, times_N[None] @ support_NK, absent_counts=True)[0])
    return {"acc": _percentiles(np.array(accuracies)), "f1_macro": _percentiles(np.array(scores))}


def _sum_by(draws_RC: npt.NDArray[np.int64], class_of_C: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Sum the cells of each class, (R, K)."""
    sums_RK = np.zeros((len(draws_RC), classes), dtype=np.int64)
    if len(class_of_C):
        order = np.argsort(class_of_C, kind="stable")
        present, starts = np.unique(class_of_C[order], return_index=True)
        sums_RK[:, present] = np.add.reduceat(draws_RC[:, order], starts, axis=1)
    return sums_RK


def _macro_f1(
    correct_RK: npt.NDArray[Any], support_RK: npt.NDArray[Any], *, absent_counts: bool
) -> npt.NDArray[np.float64]:
    """Compute the mean of ``2 tp / (2 tp + fp + fn)`` over the classes; multi-label counts absent ones as 0 (torchmetrics)."""
    scores_RK = 2 * correct_RK / np.maximum(support_RK, 1)
    shown_R = np.full(len(scores_RK), scores_RK.shape[1]) if absent_counts else (support_RK > 0).sum(axis=1)
    return np.asarray(scores_RK.sum(axis=1) / shown_R, dtype=np.float64)


def _percentiles(values: npt.NDArray[np.floating]) -> Interval:
    tail = 100 * (1 - SHARE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
