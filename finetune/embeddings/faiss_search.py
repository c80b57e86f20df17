"""Nearest neighbours by FAISS, where it is installed: the same results at its exact setting, approximate ones at others."""

from typing import Any

import numpy as np

from finetune.embeddings.search import (
    Distances,
    Features,
    Neighbours,
    Rows,
    check_search,
    nearest,
    rerank,
    rounding_errors,
)
from finetune.embeddings.whitening import l2_normalize
from finetune.errors import UserError

EXACT = "Flat"
_ROWS = 65_536
# images that an index which must be trained is trained on
_TRAINED_ON = 100_000
_SPARE = 8


class FaissIndex:
    """An index over features, held in memory in single precision.

    Args:
        features_ND: Searched in.
        metric: ``cosine`` or ``l2``.
        factory: What FAISS's ``index_factory`` takes: ``Flat`` is exact; ``HNSW32``, ``IVF1024,Flat`` are not.

    Raises:
        UserError: FAISS is not installed, or does not know the factory.
    """

    def __init__(self, features_ND: Features, *, metric: str = "cosine", factory: str = EXACT) -> None:
        faiss = _faiss()
        check_search(features_ND, features_ND[:0], k=1, metric=metric)
        self.features, self.metric, self.exact = features_ND, metric, factory == EXACT
        kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
        try:
            self.index = faiss.index_factory(features_ND.shape[1], factory, kind)
            if not self.index.is_trained:
                step = max(1, len(features_ND) // _TRAINED_ON)
                self.index.train(self._single(features_ND[::step]))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"--index {factory}: FAISS cannot build it. {reason}") from None
        for start in range(0, len(features_ND), _ROWS):
            self.index.add(self._single(features_ND[start : start + _ROWS]))

    def nearest(self, queries_QD: Features, k: int, *, leave_out: Rows | None = None) -> Neighbours:
        """As :func:`finetune.embeddings.search.nearest`; where the index is not exact, neighbours may be missing."""
        check_search(self.features, queries_QD, k=k, metric=self.metric)
        left_out = np.full(len(queries_QD), -1, np.int64) if leave_out is None else leave_out
        count = min(k + 1 + _SPARE, len(self.features))
        scores, candidates = self.index.search(self._single(queries_QD), count)
        rows = np.full((len(queries_QD), k), -1, np.int64)
        distances = np.full((len(queries_QD), k), np.inf)
        unsure = []
        errors: Distances = rounding_errors(self.features, queries_QD, metric=self.metric)
        for at in range(len(queries_QD)):
            query = np.asarray(queries_QD[at], np.float64)
            found, apart = rerank(
                self.features, query, candidates[at], metric=self.metric, leave_out=int(left_out[at]), k=k
            )
            rows[at, : len(found)], distances[at, : len(found)] = found, apart
            # inner products fall and squared distances rise towards the last candidate
            beyond = 1 - float(scores[at, -1]) if self.metric == "cosine" else float(scores[at, -1])
            reach = apart[-1] if self.metric == "cosine" else apart[-1] ** 2
            if self.exact and count < len(self.features) and beyond - errors[at] <= reach:
                unsure.append(at)
        if unsure:
            again = nearest(self.features, queries_QD[unsure], k, metric=self.metric, leave_out=left_out[unsure])
            rows[unsure], distances[unsure] = again.rows, again.distances
        return Neighbours(rows=rows, distances=distances)

    def _single(self, values: Features) -> Any:
        return np.ascontiguousarray(l2_normalize(values) if self.metric == "cosine" else values, np.float32)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "--engine faiss: FAISS is not installed. Install with: pip install 'stagewise-finetune[faiss]', or use "
            "--engine numpy."
        ) from None
    return faiss
