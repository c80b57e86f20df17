"""Nearest neighbours by matrix products over features that may be larger than memory, and by FAISS.

Features are read in blocks of rows, so that searching a memory-mapped file needs the memory of one block. Products are in
single precision for the cosine, and in double precision for the Euclidean distance, whose ``|x|^2 - 2 x.q + |q|^2`` suffers
from cancellation. The distances of the nearest rows are computed again in double precision: equal features are at distance 0.

FAISS (``--engine faiss``, an extra) is there for indexes that approximate. It is not the default, because it copies all features
into memory and computes Euclidean distances in single precision by the formula above.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.counted import counted
from finetune.embeddings.embeddings import Rows
from finetune.embeddings.files import Features
from finetune.embeddings.whitening import l2_normalize
from finetune.errors import UserError
from finetune.html import html_table

# N = rows, Q = queries, D = features, k = neighbours, B = rows of a block

METRICS = ("cosine", "l2")
# the FAISS factory string that misses no neighbour
EXACT = "Flat"
# 16 MB of 512 features in single precision
_BLOCK_ROWS = 8192
_BLOCK_QUERIES = 256
# largest rounding error of a score in the precision of its metric, as a fraction of the largest possible score
_ROUNDING = {"cosine": 1e-5, "l2": 1e-12}
_PRECISION = {"cosine": torch.float32, "l2": torch.float64}
# distances that agree to this many decimals count as equal when neighbours are ordered
_DIGITS = 12
# rows added to FAISS at once, and rows used to train an index that needs training
_FAISS_ROWS = 65_536
_FAISS_TRAINING_ROWS = 100_000

Distances = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Neighbours:
    """The nearest rows of each query, nearest first.

    Args:
        rows: int64 (Q, k); -1 where there are fewer.
        distances: float64 (Q, k): 1 - cosine, or Euclidean; infinite where there are fewer.
    """

    rows: Rows
    distances: Distances

    def __repr__(self) -> str:
        """Return how many were searched for; ``rows`` and ``distances`` have them."""
        return f"Neighbours({counted(len(self.rows), 'query', 'queries')}, the {self.rows.shape[1]} nearest of each)"

    def _repr_html_(self) -> str:
        columns = ["query", *(f"nearest {rank + 1}" for rank in range(self.rows.shape[1]))]
        rows = [
            (query, *(f"row {row}, at {distance:.4f}" for row, distance in zip(near, distances, strict=True)))
            for query, (near, distances) in enumerate(zip(self.rows, self.distances, strict=True))
        ]
        return html_table(columns, rows, caption=repr(self))


def nearest(
    features_ND: Features,
    queries_QD: Features,
    k: int,
    *,
    metric: str = "cosine",
    leave_out: Rows | None = None,
    among: Rows | None = None,
) -> Neighbours:
    """Find the k nearest rows of each query.

    Args:
        features_ND: Features to search in; may be mapped from a file.
        queries_QD: Features of the queries.
        k: Number of neighbours of each query.
        metric: ``cosine`` (1 - cosine; a zero vector is at distance 1 from every other) or ``l2``.
        leave_out: int64 (Q,), row to exclude from each query's neighbours, such as the query itself; -1 for none.
        among: Rows to search; None searches all.

    Raises:
        UserError: The widths differ, or ``k`` or the metric is out of range.
    """
    check_search(features_ND, queries_QD, k=k, metric=metric)
    count = k if leave_out is None else k + 1
    candidates = [np.zeros((0, count), np.int64)]
    for start in range(0, len(queries_QD), _BLOCK_QUERIES):
        queries = queries_QD[start : start + _BLOCK_QUERIES]
        best = torch.full((len(queries), count), -torch.inf, dtype=_PRECISION[metric])
        best_rows = torch.full((len(queries), count), -1)
        for rows_B, scores_QB in _scores(features_ND, queries, metric, among):
            scores, at = scores_QB.topk(min(count, len(rows_B)))
            best, order = torch.cat([best, scores], 1).topk(count)
            best_rows = torch.cat([best_rows, rows_B[at]], 1).gather(1, order)
        candidates.append(best_rows.numpy())
    return _ranked(features_ND, queries_QD, np.concatenate(candidates), k, metric=metric, leave_out=leave_out)


def within(
    features_ND: Features, queries_QD: Features, radius: float, *, metric: str = "cosine"
) -> Iterator[tuple[Rows, Distances]]:
    """Yield for each query all rows within a distance, nearest first.

    Raises:
        UserError: See :func:`nearest`; also if the radius is negative.
    """
    check_search(features_ND, queries_QD, k=1, metric=metric)
    if not radius >= 0:
        raise UserError(f"--radius {radius}: must be 0 or more.")
    for start in range(0, len(queries_QD), _BLOCK_QUERIES):
        queries = queries_QD[start : start + _BLOCK_QUERIES]
        squares = torch.from_numpy((np.asarray(queries, np.float64) ** 2).sum(1))
        row_blocks: list[list[Rows]] = [[] for _ in queries]
        for rows_B, scores_QB in _scores(features_ND, queries, metric, None):
            if metric == "cosine":
                near = scores_QB >= 1 - radius - _ROUNDING[metric]
            else:
                # the score is 2 x.q - |x|^2, so the squared distance is |q|^2 less the score
                largest = squares[:, None] + scores_QB.abs()
                near = scores_QB >= squares[:, None] - radius**2 - _ROUNDING[metric] * largest
            for query in near.any(1).nonzero()[:, 0].tolist():
                row_blocks[query].append(rows_B[near[query]].numpy())
        for query_D, rows in zip(queries, row_blocks, strict=True):
            candidates, distances = rank(features_ND, query_D, np.concatenate([np.zeros(0, np.int64), *rows]), metric)
            yield candidates[distances <= radius], distances[distances <= radius]


def check_search(features_ND: Features, queries_QD: Features, *, k: int, metric: str) -> None:
    """Check that a search is possible.

    Raises:
        UserError: The widths differ, or ``k`` or the metric is out of range.
    """
    if metric not in METRICS:
        raise UserError(f"--metric {metric}: must be one of {', '.join(METRICS)}.")
    if k < 1:
        raise UserError(f"-k {k}: must be at least 1.")
    if features_ND.shape[1] != queries_QD.shape[1]:
        raise UserError(f"queries have {queries_QD.shape[1]} features, the embeddings {features_ND.shape[1]}.")


def rank(features_ND: Features, query_D: Features, rows: Rows, metric: str) -> tuple[Rows, Distances]:
    """Sort rows by their distance from a query in double precision; equally distant rows are in ascending order."""
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        values = np.asarray(features_ND[rows[part]], np.float64)
        distances[part] = _distances(values, np.asarray(query_D, np.float64), metric)
    order = np.lexsort((rows, distances.round(_DIGITS)))
    return rows[order], distances[order]


class FaissIndex:
    """A FAISS index over features, held in memory in single precision.

    Args:
        features_ND: Features to search in.
        metric: ``cosine`` or ``l2``.
        factory: Argument of FAISS's ``index_factory``: ``Flat`` is exact; ``HNSW32`` and ``IVF1024,Flat`` are not.

    Raises:
        UserError: FAISS is not installed, or does not know the factory.
    """

    def __init__(self, features_ND: Features, *, metric: str = "cosine", factory: str = EXACT) -> None:
        faiss = _faiss()
        check_search(features_ND, features_ND[:0], k=1, metric=metric)
        self.features, self.metric = features_ND, metric
        kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
        try:
            self.index = faiss.index_factory(features_ND.shape[1], factory, kind)
            if not self.index.is_trained:
                step = max(1, len(features_ND) // _FAISS_TRAINING_ROWS)
                self.index.train(self._prepare(features_ND[::step]))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"--index {factory}: FAISS cannot build it. {reason}") from None
        for start in range(0, len(features_ND), _FAISS_ROWS):
            self.index.add(self._prepare(features_ND[start : start + _FAISS_ROWS]))

    def nearest(self, queries_QD: Features, k: int, *, leave_out: Rows | None = None) -> Neighbours:
        """Find neighbours as :func:`nearest` does; an index that is not exact may miss some."""
        check_search(self.features, queries_QD, k=k, metric=self.metric)
        count = k if leave_out is None else k + 1
        _, candidates = self.index.search(self._prepare(queries_QD), min(count, len(self.features)))
        return _ranked(self.features, queries_QD, candidates, k, metric=self.metric, leave_out=leave_out)

    def _prepare(self, values: Features) -> Any:
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


def _scores(
    features_ND: Features, queries_QD: Features, metric: str, among: Rows | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield row numbers (B,) and scores (Q, B) per block, higher for nearer rows: the cosine, or ``2 x.q - |x|^2``."""
    queries = torch.from_numpy(np.asarray(queries_QD, np.float64))
    if metric == "cosine":
        queries = torch.nn.functional.normalize(queries, eps=1e-300)
    queries = queries.to(_PRECISION[metric])
    count = len(features_ND) if among is None else len(among)
    for start in range(0, count, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, count)
        rows = np.arange(start, stop) if among is None else among[start:stop]
        values = _tensor(features_ND[start:stop] if among is None else features_ND[rows]).to(_PRECISION[metric])
        scores = queries @ values.T
        lengths = torch.linalg.vector_norm(values, dim=1)
        if metric == "cosine":
            scores /= lengths.where(lengths > 0, 1)
        else:
            scores.mul_(2).sub_(lengths**2)
        yield torch.from_numpy(rows), scores


def _tensor(values: Features) -> Tensor:
    """Wrap features without copying, unless they are misaligned or in another byte order."""
    values = np.require(values, values.dtype.newbyteorder("="), ["C", "A"])
    with warnings.catch_warnings():
        # the file is mapped read-only, and nothing is written here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def _ranked(
    features_ND: Features, queries_QD: Features, candidates: Rows, k: int, *, metric: str, leave_out: Rows | None
) -> Neighbours:
    """Sort the candidates (Q, m) of each query; -1 stands for none."""
    rows, distances = np.full((len(queries_QD), k), -1, np.int64), np.full((len(queries_QD), k), np.inf)
    for at, query_D in enumerate(queries_QD):
        query_rows = candidates[at][candidates[at] >= 0]
        if leave_out is not None:
            query_rows = query_rows[query_rows != leave_out[at]]
        query_rows, query_distances = rank(features_ND, query_D, query_rows, metric)
        rows[at, : len(query_rows)], distances[at, : len(query_rows)] = query_rows[:k], query_distances[:k]
    return Neighbours(rows=rows, distances=distances)


def _distances(values_MD: Distances, query_D: Distances, metric: str) -> Distances:
    if metric == "l2":
        euclidean: Distances = np.linalg.norm(values_MD - query_D, axis=1)
        return euclidean
    lengths = np.linalg.norm(values_MD, axis=1) * np.linalg.norm(query_D)
    products = values_MD @ query_D
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    # a difference from a cosine of 1 that is only rounding counts as distance 0
    from_one: Distances = np.where(1 - cosines < 10.0**-_DIGITS, 0.0, 1 - cosines)
    return from_one
