"""Exact nearest neighbours by blocked matrix products over features that may be larger than memory.

Products are taken in single precision, a block of rows at a time; the best few of each query are then compared in double
precision. The rounding of the first pass is bounded: where it could have hidden a neighbour, the rows in question are compared
too. So the answer is that of double precision, whatever the size of the blocks, and equally distant rows come in their order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import UserError

# N = rows, Q = queries, D = features, k = neighbours, m = candidates

METRICS = ("cosine", "l2")
# rows that are converted to single precision at once: 16 MB of 512 features
_ROWS = 8192
_QUERIES = 256
_SPARE = 8
# relative error of rounding to single precision
_UNIT = 2.0**-24
# rows whose bits are moved at once, so that they stay in the processor's cache
_CACHED_ROWS = 1024
# the sign, and 15 bits of exponent and fraction 13 places further left
_SIGN_AND_HALF = np.int32(-(2**31) + (2**15 - 1) * 2**13)
# the square of what infinity in half precision turns into
_BEYOND_HALF = np.float32(65536.0**2)
# distances that differ by less count as equal, in the order of neighbours
_SAME = 12

Features = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The nearest rows of each query, the nearest first.

    Args:
        rows: int64 (Q, k); -1 where there are fewer.
        distances: float64 (Q, k): 1 - cosine, or Euclidean; infinite where there are fewer.
    """

    rows: Rows
    distances: Distances


def nearest(
    features_ND: Features,
    queries_QD: Features,
    k: int,
    *,
    metric: str = "cosine",
    leave_out: Rows | None = None,
    among: Rows | None = None,
) -> Neighbours:
    """The k nearest rows of each query.

    Args:
        features_ND: Searched in; may be mapped from a file.
        queries_QD: Looked for.
        k: Neighbours of each query.
        metric: ``cosine`` (1 - cosine; a vector of zeros is at distance 1 from all) or ``l2``.
        leave_out: int64 (Q,), a row that is no neighbour of the query, such as itself; -1 for none.
        among: Search in these rows only.

    Raises:
        UserError: The widths differ, or ``k`` or the metric is out of range.
    """
    check_search(features_ND, queries_QD, k=k, metric=metric)
    left_out = np.full(len(queries_QD), -1, np.int64) if leave_out is None else leave_out
    rows = np.full((len(queries_QD), k), -1, np.int64)
    distances = np.full((len(queries_QD), k), np.inf)
    for start in range(0, len(queries_QD), _QUERIES):
        part = slice(start, start + _QUERIES)
        block = _Scan(features_ND, np.asarray(queries_QD[part], np.float64), metric, among)
        candidates, bounds = block.best(k + 1 + _SPARE)
        _settle(block, candidates, bounds, left_out[part], rows[part], distances[part])
    return Neighbours(rows=rows, distances=distances)


def within(
    features_ND: Features, queries_QD: Features, radius: float, *, metric: str = "cosine", among: Rows | None = None
) -> Iterator[tuple[Rows, Distances]]:
    """For each query, all rows at most a distance away, the nearest first.

    Raises:
        UserError: As :func:`nearest`, or the radius is negative.
    """
    check_search(features_ND, queries_QD, k=1, metric=metric)
    if not radius >= 0:
        raise UserError(f"--radius {radius}: must be 0 or more.")
    for start in range(0, len(queries_QD), _QUERIES):
        block = _Scan(features_ND, np.asarray(queries_QD[start : start + _QUERIES], np.float64), metric, among)
        limits = block.score_at(np.full(len(block.queries), radius))
        for number, rows in enumerate(block.above(limits)):
            found, distances = rerank(features_ND, block.queries[number], rows, metric=metric)
            near = distances <= radius
            yield found[near], distances[near]


def check_search(features_ND: Features, queries_QD: Features, *, k: int, metric: str) -> None:
    """What a search must have.

    Raises:
        UserError: The widths differ, or ``k`` or the metric is out of range.
    """
    if metric not in METRICS:
        raise UserError(f"--metric {metric}: must be one of {', '.join(METRICS)}.")
    if k < 1:
        raise UserError(f"-k {k}: must be at least 1.")
    if features_ND.shape[1] != queries_QD.shape[1]:
        raise UserError(f"queries have {queries_QD.shape[1]} features, the embeddings {features_ND.shape[1]}.")


def rerank(
    features_ND: Features, query_D: Distances, rows: Rows, *, metric: str, leave_out: int = -1, k: int | None = None
) -> tuple[Rows, Distances]:
    """Rows in the order of their distance to a query, in double precision; equally distant ones in theirs."""
    rows = rows[(rows != leave_out) & (rows >= 0)]
    distances = np.concatenate(
        [np.zeros(0)]
        + [
            _distances(np.asarray(features_ND[rows[at : at + _ROWS]], np.float64), query_D, metric)
            for at in range(0, len(rows), _ROWS)
        ]
    )
    order = np.lexsort((rows, distances.round(_SAME)))[:k]
    return rows[order], distances[order]


def _distances(values: Distances, query_D: Distances, metric: str) -> Distances:
    if metric == "l2":
        apart: Distances = np.sqrt(((values - query_D) ** 2).sum(1))
        return apart
    lengths = np.sqrt((values**2).sum(1)) * np.sqrt((query_D**2).sum())
    products = (values * query_D).sum(1)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    # what differs from a cosine of 1 by rounding alone is no distance
    from_one: Distances = np.where(1 - cosines < 10.0**-_SAME, 0.0, 1 - cosines)
    return from_one


def _settle(
    scan: "_Scan", candidates: Rows, bounds: Distances, left_out: Rows, rows: Rows, distances: Distances
) -> None:
    """Write the neighbours of a block of queries; look again where rounding could have hidden one."""
    k = rows.shape[1]
    unsure = []
    for at, query in enumerate(scan.queries):
        found, apart = rerank(
            scan.features, query, candidates[at], metric=scan.metric, leave_out=int(left_out[at]), k=k
        )
        rows[at, : len(found)], distances[at, : len(found)] = found, apart
        if np.isfinite(bounds[at]) and bounds[at] + scan.errors[at] >= scan.score_at(apart[-1:], at)[0]:
            unsure.append(at)
    if unsure:
        again = scan.only(unsure)
        limits = np.array([scan.score_at(distances[at, -1:], at)[0] for at in unsure])
        for at, maybe in zip(unsure, again.above(limits), strict=True):
            found, apart = rerank(
                scan.features, scan.queries[at], maybe, metric=scan.metric, leave_out=int(left_out[at]), k=k
            )
            rows[at, : len(found)], distances[at, : len(found)] = found, apart


class _Scan:
    """One pass over all rows for a block of queries, in scores: the higher the nearer.

    A score is the cosine, or ``2 x.q - |x|^2``, which orders rows as the Euclidean distance does.
    """

    def __init__(self, features: Features, queries: Distances, metric: str, among: Rows | None) -> None:
        self.features, self.queries, self.metric, self.among = features, queries, metric, among
        self.lengths = np.sqrt((queries**2).sum(1))
        scaled = queries / np.where(self.lengths > 0, self.lengths, 1)[:, None] if metric == "cosine" else queries
        self._single = scaled.astype(np.float32)
        # of scores; for l2 they are known when the longest row is, at the end of a pass
        self._longest = 0.0

    @property
    def errors(self) -> Distances:
        """How far the score of a row may be off, for each query."""
        return _errors(self.lengths, self._longest, self.features.shape[1], self.metric)

    def only(self, queries: list[int]) -> "_Scan":
        """The same for some of the queries."""
        scan = _Scan(self.features, self.queries[queries], self.metric, self.among)
        scan._longest = self._longest
        return scan

    def score_at(self, distances: Distances, at: int | slice = slice(None)) -> Distances:
        """Scores of distances from a query."""
        return 1 - distances if self.metric == "cosine" else self.lengths[at] ** 2 - distances**2

    def best(self, count: int) -> tuple[Rows, Distances]:
        """Rows of the highest scores of each query, and a score that no other row exceeds but by rounding."""
        scores = np.full((len(self.queries), count), -np.inf, np.float32)
        rows = np.full((len(self.queries), count), -1, np.int64)
        for numbers, block in self._blocks():
            better = block > scores[:, -1:]
            # late blocks hold nothing better for most queries, and looking for where costs more than asking whether
            if not better.any():
                continue
            hit, place = np.nonzero(better)
            ends = np.searchsorted(hit, np.arange(len(self.queries) + 1))
            for query in np.unique(hit).tolist():
                mine = place[ends[query] : ends[query + 1]]
                several = np.concatenate([scores[query], block[query, mine]])
                where = np.concatenate([rows[query], numbers[mine]])
                if len(several) > 4 * count:
                    top = np.argpartition(-several, count - 1)[:count]
                    several, where = several[top], where[top]
                order = np.argsort(-several, kind="stable")[:count]
                scores[query], rows[query] = several[order], where[order]
        return rows, scores[:, -1].astype(np.float64)

    def above(self, limits: Distances) -> list[Rows]:
        """For each query the rows whose true score may reach a limit."""
        found: list[list[Rows]] = [[] for _ in self.queries]
        if self.metric == "l2" and not self._longest:
            self._longest = _longest(self.features)
        lowest = (limits - self.errors)[:, None]
        for numbers, block in self._blocks():
            hit, place = np.nonzero(block >= lowest)
            for query in np.unique(hit).tolist():
                found[query].append(numbers[place[hit == query]])
        return [np.concatenate(rows) if rows else np.zeros(0, np.int64) for rows in found]

    def _blocks(self) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
        """Row numbers and scores (Q, rows) of each block."""
        count = len(self.features) if self.among is None else len(self.among)
        for start in range(0, count, _ROWS):
            part = slice(start, min(start + _ROWS, count))
            numbers = np.arange(part.start, part.stop) if self.among is None else self.among[part]
            values, squares = single(self.features[part if self.among is None else numbers])
            scores = self._single @ values.T
            if self.metric == "cosine":
                scores /= np.sqrt(np.where(squares > 0, squares, 1))
            else:
                scores *= 2
                scores -= squares
                self._longest = max(self._longest, float(np.sqrt(squares.max(initial=0))))
            yield numbers, scores


def rounding_errors(features_ND: Features, queries_QD: Features, *, metric: str) -> Distances:
    """How far a score of each query may be off, whoever sums it in single precision."""
    lengths = np.sqrt((np.asarray(queries_QD, np.float64) ** 2).sum(1))
    longest = _longest(features_ND) if metric == "l2" else 0.0
    return _errors(lengths, longest, features_ND.shape[1], metric)


def _longest(features_ND: Features) -> float:
    starts = range(0, len(features_ND), _ROWS)
    return max((float(single(features_ND[at : at + _ROWS])[1].max(initial=0)) ** 0.5 for at in starts), default=0.0)


def single(features_ND: Features) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Features in single precision, and the squares of their lengths (N,).

    Half precision is widened by moving its bits, five times as fast as numpy's own conversion: exponent and fraction go to
    their places, and a multiplication by 2^112 makes up for the other bias, subnormal numbers included. Infinity and NaN,
    which become 65536 and more, are left to numpy.
    """
    if features_ND.dtype != np.float16:
        values = np.asarray(features_ND, np.float32)
        return values, np.einsum("ij,ij->i", values, values)
    halves = np.ascontiguousarray(features_ND).view(np.int16)
    bits = np.empty(halves.shape, np.int32)
    for start in range(0, len(bits), _CACHED_ROWS):
        part = bits[start : start + _CACHED_ROWS]
        np.copyto(part, halves[start : start + _CACHED_ROWS])
        np.left_shift(part, 13, out=part)
        np.bitwise_and(part, _SIGN_AND_HALF, out=part)
        scaled = part.view(np.float32)
        np.multiply(scaled, np.float32(2.0**112), out=scaled)
    values = bits.view(np.float32)
    squares = np.einsum("ij,ij->i", values, values)
    if not squares.max(initial=0) < _BEYOND_HALF:
        values = features_ND.astype(np.float32)
        squares = np.einsum("ij,ij->i", values, values)
    return values, squares


def _errors(lengths: Distances, longest: float, dim: int, metric: str) -> Distances:
    """A sum of D products, in any order, is off by at most D units of the sum of their sizes; a few more are ours.

    Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    units = 1.01 * (dim + 8) * _UNIT
    if metric == "cosine":
        return np.full(len(lengths), 2 * units)
    return units * (longest + lengths) ** 2
