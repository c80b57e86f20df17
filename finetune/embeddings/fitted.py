"""What a classifier on features gives, however it was fitted."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# N = images, K = classes

# the least probability a class is given, so that a loss stays finite
_LEAST = 1e-6

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FittedClassifier:
    """A classifier with what was tried for it.

    Args:
        method: ``knn`` or ``logistic``.
        chosen: The setting, by its name: ``k``, or ``C`` (inverse strength).
        tried: Cross-validated accuracy and loss of each setting.
        steps: Iterations of the last fit.
        arrays: What it consists of.
        remarks: Sentences for the user.
    """

    method: str
    chosen: dict[str, float]
    tried: list[dict[str, float]]
    steps: int
    arrays: dict[str, npt.NDArray[Any]]
    remarks: list[str] = field(default_factory=list)


class Classifies(Protocol):
    """Probabilities of all classes for features."""

    fitted: FittedClassifier

    def shares(self, features: npt.NDArray[np.floating[Any]]) -> Probabilities:
        """Probabilities (N, K)."""
        ...


def figures(shares: Probabilities, targets: npt.NDArray[np.int64]) -> dict[str, float]:
    """Accuracy and loss of probabilities (N, K)."""
    likely = finite(shares)[np.arange(len(targets)), targets]
    return {"acc": float((shares.argmax(1) == targets).mean()), "loss": float(-np.log(likely).mean())}


def finite(shares: Probabilities) -> Probabilities:
    """No class quite impossible, sums still one."""
    lifted = np.maximum(shares, _LEAST)
    scaled: Probabilities = lifted / lifted.sum(1, keepdims=True)
    return scaled
