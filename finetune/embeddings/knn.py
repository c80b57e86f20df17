"""The nearest-neighbour rule on features, the number of neighbours chosen by leaving one out."""

from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.embeddings.fitted import FittedClassifier, Probabilities, figures, finite
from finetune.embeddings.search import Rows, nearest

# N = images, D = features, K = classes

# numbers of neighbours that are tried
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)


class NearestNeighbours:
    """Votes of the k nearest training images, each weighed by ``exp`` of its distance as a share of the k-th one's.

    k is chosen by leaving each training image out once: the most accurate one, the smaller of equals.

    Args:
        features_ND: Of the training images.
        targets: int64 (N,).
        classes: Number of classes.
        metric: ``cosine`` or ``l2``.
    """

    def __init__(
        self, features_ND: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.int64], *, classes: int, metric: str
    ) -> None:
        self._features, self._targets, self._classes, self._metric = features_ND, targets, classes, metric
        ks = [k for k in NEIGHBOURS if k < len(targets)]
        found = nearest(features_ND, features_ND, max(ks), metric=metric, leave_out=np.arange(len(targets)))
        tried = []
        for k in ks:
            shares = self._vote(found.rows[:, :k], found.distances[:, :k])
            tried.append({"k": k, **figures(shares, targets)})
        best = max(tried, key=lambda row: (row["acc"], -row["k"]))
        self._k = int(best["k"])
        arrays = {"features": np.asarray(features_ND), "targets": targets, "k": np.array([self._k])}
        self.fitted = FittedClassifier(method="knn", chosen={"k": self._k}, tried=tried, steps=0, arrays=arrays)

    def shares(self, features: npt.NDArray[np.floating[Any]]) -> Probabilities:
        """Probabilities (N, K): shares of the votes."""
        found = nearest(self._features, features, self._k, metric=self._metric)
        return self._vote(found.rows, found.distances)

    def _vote(self, rows: Rows, distances: npt.NDArray[np.float64]) -> Probabilities:
        far = distances[:, -1:]
        weights = np.exp(-distances / np.where(far > 0, far, 1))
        votes = np.zeros((len(rows), self._classes))
        np.add.at(votes, (np.arange(len(rows))[:, None], self._targets[rows]), weights)
        return finite(votes / votes.sum(1, keepdims=True))
