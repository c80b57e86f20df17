"""Divide a data set into parts (splits or folds): no group is divided, and each part gets its share of each class.

The loss of a division is the sum over parts and classes of ``(images - target)² / (fraction * images of the class²)``, with
all images together as one more class. Groups are placed one by one, from large to small, in an order that depends only on
contents and seed, each in the part where the loss grows least. Then every class gets an image in each part if it has enough
groups, and single groups are moved, or two exchanged, as long as that lowers the loss. scikit-learn's StratifiedGroupKFold
places groups in a similar way, but has no fractions and does not improve the result.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, hstack

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

# exchanges are searched among all pairs of groups, so only for up to this many groups
_MOST_EXCHANGED = 512
_MOST_STEPS = 1000
# a move must lower the loss by more than a rounding error
_LEAST_GAIN = 1e-9


def divide_groups(
    counts: csr_array,
    *,
    sizes: Counts,
    keys: npt.NDArray[np.uint64],
    fractions: Sequence[float],
    cover: bool,
) -> npt.NDArray[np.int64]:
    """Assign each group to a part.

    Args:
        counts: Images of each group and class, sparse (G, K).
        sizes: Images of each group, int64 (G,).
        keys: Random number of each group, uint64 (G,), which decides the order of groups of similar size.
        fractions: Share of each part; a part of share 0 stays empty.
        cover: Whether every class needs an image in each part; the first parts come first if it has too few groups.

    Returns:
        Part of each group, int64 (G,).
    """
    division = _Division(counts, sizes, fractions)
    # groups of similar size are ordered by their keys; large ones come first, because small ones can even out the rest
    magnitude = np.floor(np.log2(np.maximum(sizes, 1)))
    for group in np.lexsort((keys, -magnitude)).tolist():
        division.place(group)
    if cover:
        division.cover()
    division.improve()
    return division.part


class _Division:
    """A division of groups into parts; the last column of ``counts`` is the number of images of a group."""

    def __init__(self, counts: csr_array, sizes: Counts, fractions: Sequence[float]) -> None:
        with_size = csr_array(hstack([counts, csr_array(sizes.reshape(-1, 1))]), dtype=np.float64)
        with_size.sort_indices()
        self.counts = with_size
        totals = np.asarray(with_size.sum(axis=0), np.float64).ravel()
        self.weight = np.divide(1.0, totals**2, out=np.zeros_like(totals), where=totals > 0)
        self.fraction = np.array(fractions, np.float64)
        self.parts = np.flatnonzero(self.fraction > 0)
        self.surplus = -np.outer(self.fraction, totals)  # (parts, K + 1)
        self.part = np.full(with_size.shape[0], -1, np.int64)
        self.groups_of = np.zeros((len(self.fraction), with_size.shape[1]), np.int64)
        self.needed = np.zeros_like(self.groups_of, dtype=np.bool_)
        self.spread = np.asarray(with_size.multiply(with_size) @ self.weight).ravel()

    def classes(self, group: int) -> tuple[Counts, Numbers]:
        """Return the columns in which a group has images, and the number of images in each."""
        at = slice(self.counts.indptr[group], self.counts.indptr[group + 1])
        return self.counts.indices[at], self.counts.data[at]

    def place(self, group: int) -> None:
        """Place a group in the part where the loss grows least."""
        columns, images = self.classes(group)
        weighted = images * self.weight[columns]
        growth = 2 * self.surplus[np.ix_(self.parts, columns)] @ weighted + self.spread[group]
        self.put(group, int(self.parts[np.argmin(growth / self.fraction[self.parts])]))

    def put(self, group: int, part: int) -> None:
        """Move a group to a part."""
        columns, images = self.classes(group)
        before = int(self.part[group])
        if before >= 0:
            self.surplus[before, columns] -= images
            self.groups_of[before, columns] -= 1
        self.surplus[part, columns] += images
        self.groups_of[part, columns] += 1
        self.part[group] = part

    def cover(self) -> None:
        """Give every class an image in each part, as far as it has enough groups; the first parts come first."""
        of_class = self.counts.tocsc()
        groups = np.diff(of_class.indptr)
        for rank, part in enumerate(self.parts.tolist()):
            self.needed[part] = groups > rank
            for column in np.argsort(groups, kind="stable").tolist():
                if not self.needed[part, column] or self.groups_of[part, column]:
                    continue
                holders = of_class.indices[of_class.indptr[column] : of_class.indptr[column + 1]]
                allowed = [group for group in holders.tolist() if self._may_leave(group)]
                if allowed:
                    change = self._changes()[allowed, part]
                    self.put(allowed[int(np.argmin(change))], part)

    def improve(self) -> None:
        """Move single groups, or exchange two, as long as that lowers the loss."""
        for _ in range(_MOST_STEPS):
            change = self._changes()
            step = next(self._moves(change), None) or next(self._exchanges(change), None)
            if step is None:
                return
            for group, part in step:
                self.put(group, part)

    def _changes(self) -> Numbers:
        """Return by how much the loss grows if a group is moved to a part, for each group and part, (G, parts)."""
        rate = np.divide(1.0, self.fraction, out=np.full_like(self.fraction, np.inf), where=self.fraction > 0)
        pull = np.zeros((len(self.part), len(self.fraction)))
        pull[:, self.parts] = self.counts @ (self.surplus * self.weight)[self.parts].T * rate[self.parts]
        rows = np.arange(len(self.part))
        change: Numbers = 2 * (pull - pull[rows, self.part][:, None]) + self.spread[:, None] * (
            rate + rate[self.part][:, None]
        )
        change[rows, self.part] = np.inf
        return change

    def _moves(self, change: Numbers) -> Iterator[list[tuple[int, int]]]:
        for flat in np.argsort(change, axis=None)[:64].tolist() if change.size else ():
            group, part = divmod(flat, change.shape[1])
            if change[group, part] > -_LEAST_GAIN:
                return
            if self._may_leave(group):
                yield [(group, part)]

    def _exchanges(self, change: Numbers) -> Iterator[list[tuple[int, int]]]:
        if len(self.part) > _MOST_EXCHANGED:
            return
        shared = ((self.counts * self.weight) @ self.counts.T).toarray()
        rate = np.divide(1.0, self.fraction, out=np.zeros_like(self.fraction), where=self.fraction > 0)
        forth = change[:, self.part]  # (G, G): the first group moved to the part of the second
        both = forth + forth.T - 2 * shared * (rate[self.part][:, None] + rate[self.part])
        both[self.part[:, None] == self.part] = np.inf
        for flat in np.argsort(both, axis=None)[:64].tolist():
            one, other = divmod(flat, len(self.part))
            if both[one, other] > -_LEAST_GAIN:
                return
            if self._may_leave(one, other) and self._may_leave(other, one):
                yield [(one, int(self.part[other])), (other, int(self.part[one]))]

    def _may_leave(self, group: int, instead: int | None = None) -> bool:
        """Tell whether a group, perhaps replaced by another, may leave its part: no class that the part needs is lost."""
        columns, _ = self.classes(group)
        part = self.part[group]
        alone = self.needed[part, columns] & (self.groups_of[part, columns] < 2)
        return not alone.any() or (
            instead is not None and bool(np.isin(columns[alone], self.classes(instead)[0]).all())
        )
