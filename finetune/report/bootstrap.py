"""Confidence intervals for the headline metrics: test images resampled with replacement (bootstrap, Efron 1979).

``scipy.stats.bootstrap`` resamples rows of images, so that its cost grows with their number, and the metric would be computed on
every resample from its rows. The metrics of one label need only the confusion matrix, whose cells are drawn instead.
"""

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
        scores.append(_macro_f1(correct_RK, support_RK))
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
        scores.append(_macro_f1(times_N[None] @ both_NK, times_N[None] @ support_NK)[0])
    return {"acc": _percentiles(np.array(accuracies)), "f1_macro": _percentiles(np.array(scores))}


def _sum_by(draws_RC: npt.NDArray[np.int64], class_of_C: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Sum the cells of each class, (R, K)."""
    sums_RK = np.zeros((len(draws_RC), classes), dtype=np.int64)
    if len(class_of_C):
        order = np.argsort(class_of_C, kind="stable")
        present, starts = np.unique(class_of_C[order], return_index=True)
        sums_RK[:, present] = np.add.reduceat(draws_RC[:, order], starts, axis=1)
    return sums_RK


def mean_interval(values_N: npt.NDArray[np.floating[Any]], *, seed: int = 0) -> Interval:
    """Compute the percentile interval of a mean over images, such as a loss."""
    random, images = np.random.default_rng(seed), len(values_N)
    means = [values_N[random.integers(0, images, images)].mean() for _ in range(RESAMPLES)]
    return _percentiles(np.array(means))


def average_precision_interval(
    targets_NK: npt.NDArray[np.bool_], scores_NK: npt.NDArray[np.floating[Any]], *, seed: int = 0
) -> Interval:
    """Compute the percentile interval of the mean average precision over the classes that any image of a resample shows.

    A resample only says how often each image counts, so every class is sorted once.

    Args:
        targets_NK: Whether an image shows a class.
        scores_NK: Probability of each class.
        seed: Seed of the resampling.
    """
    random, images = np.random.default_rng(seed), len(targets_NK)
    order_NK = np.argsort(-scores_NK, axis=0, kind="stable")
    hit_NK = np.take_along_axis(targets_NK, order_NK, axis=0)
    sorted_NK = np.take_along_axis(scores_NK, order_NK, axis=0)
    # images of equal probability are one threshold, which the last of them stands for
    ends_NK = np.vstack([np.diff(sorted_NK, axis=0) != 0, np.ones((1, sorted_NK.shape[1]), np.bool_)])
    values = []
    for _ in range(RESAMPLES):
        times_NK = np.bincount(random.integers(0, images, images), minlength=images)[order_NK]
        found_NK = np.cumsum(times_NK * hit_NK, axis=0)
        precision_NK = found_NK / np.maximum(np.cumsum(times_NK, axis=0), 1)
        total_K = found_NK[-1]
        shown_K = total_K > 0
        scores_K = np.zeros(len(total_K))
        for k in np.flatnonzero(shown_K):
            ends_N = ends_NK[:, k]
            gained = np.diff(found_NK[ends_N, k], prepend=0)
            scores_K[k] = (gained * precision_NK[ends_N, k]).sum() / total_K[k]
        values.append(scores_K[shown_K].mean() if shown_K.any() else 0.0)
    return _percentiles(np.array(values))


def _macro_f1(correct_RK: npt.NDArray[Any], support_RK: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Compute the mean of ``2 tp / (2 tp + fp + fn)`` over the classes with a target or a prediction, as the metrics do."""
    scores_RK = 2 * correct_RK / np.maximum(support_RK, 1)
    shown_R = np.maximum((support_RK > 0).sum(axis=1), 1)
    return np.asarray(scores_RK.sum(axis=1) / shown_R, dtype=np.float64)


def _percentiles(values: npt.NDArray[np.floating]) -> Interval:
    tail = 100 * (1 - SHARE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
