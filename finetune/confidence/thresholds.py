"""Decision thresholds of a model for several labels: from which probability on an image counts as showing a class.

One half gives the most right answers about single pairs of an image and a class. The F1 score of a rare class wants less: it is
highest at half of the F1 score that is reached there (Lipton et al. 2014, arXiv 1402.1892). Calibrated probabilities of the
validation images give the expected F1 score at each threshold without their labels, of which a rare class has too few:
``tests/benchmarks/decision_thresholds.py`` compares it with the threshold that is best by the labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.file_schema import THRESHOLD

# N = images, K = classes

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class ThresholdFit:
    """Decision thresholds fitted on validation images.

    Args:
        thresholds: Threshold of each class, four digits.
        left: Classes, by number, whose threshold is left at one half because no validation image shows them, or every one
            does.
    """

    thresholds: tuple[float, ...]
    left: tuple[int, ...]


def fit_thresholds(probabilities_NK: Floats, targets_NK: npt.NDArray[np.integer]) -> ThresholdFit:
    """Choose the thresholds that give each class the highest F1 score that its calibrated probabilities promise.

    Args:
        probabilities_NK: Calibrated probabilities of validation images.
        targets_NK: Zeros and ones.
    """
    thresholds, left = [], []
    for number, (probabilities_N, shown_N) in enumerate(zip(probabilities_NK.T, targets_NK.T > 0, strict=True)):
        if shown_N.any() and not shown_N.all():
            # each image counts as showing the class with its probability: the expected F1 score
            thresholds.append(best_threshold(probabilities_N, probabilities_N))
        else:
            # nothing was seen of what the probabilities promise: a class never met could be given to every image
            thresholds.append(THRESHOLD)
            left.append(number)
    return ThresholdFit(thresholds=tuple(thresholds), left=tuple(left))


def best_threshold(probabilities_N: Floats, shown_N: Floats | npt.NDArray[np.bool_]) -> float:
    """Return the threshold with the highest F1 score, between two probabilities, to four digits.

    Args:
        probabilities_N: Probabilities of the class.
        shown_N: Whether each image shows it, or with which probability.
    """
    order = np.argsort(-probabilities_N, kind="stable")
    ranked, true = probabilities_N[order].astype(np.float64), np.cumsum(shown_N[order], dtype=np.float64)
    scores = 2 * true / (np.arange(1, len(ranked) + 1) + true[-1])
    # images of the same probability are on the same side
    last_of_its_value = np.append(ranked[1:] < ranked[:-1], True)
    best = int(np.argmax(np.where(last_of_its_value, scores, -1.0)))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(f"{(ranked[best] + below) / 2:.4g}")


def threshold_problems(values: object, *, classes: int) -> list[str]:
    """Return the problems with the thresholds in a file, which somebody else may have written."""
    right = (
        isinstance(values, list)
        and len(values) == classes
        and all(type(value) is float and 0 <= value < 1 for value in values)
    )
    return [] if right else [f"thresholds: must be {classes} numbers from 0 to below 1, one of each class"]


def labels_shown(probabilities_K: Sequence[float] | Floats, thresholds: Sequence[float]) -> list[int]:
    """Return the numbers of the classes whose probability is above their threshold.

    >>> labels_shown([0.9, 0.3, 0.3], [0.5, 0.25, 0.3])
    [0, 1]
    """
    # in double precision, in which thresholds are written
    return [int(number) for number in np.flatnonzero(np.asarray(probabilities_K, np.float64) > np.asarray(thresholds))]
