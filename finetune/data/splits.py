"""Splits that are stratified and reproducible, keep identical images together, and hardly change as data is added.

Every sample has a rank key made from its *content* and the seed. Within a class the samples are ordered by their keys:
validation takes the lower end, test the upper end, training the middle. Hence:

- renaming a file changes nothing, and neither does the order in which files are listed;
- identical contents have one key and move as one unit, so they are never in two splits;
- a class gets its share to the nearest sample (where duplicates and its size allow) and always keeps a training sample;
- adding ``m`` samples to a class moves at most ``m`` of the old ones across each of the two boundaries, and none
  between validation and test. (To move none, each sample would have to be drawn by itself, and no share is then exact.)
"""

import numpy as np
import numpy.typing as npt

from finetune.data.index import SPLITS
from finetune.split_settings import SplitSettings

TRAIN, VAL, TEST = (np.int8(SPLITS.index(name)) for name in ("train", "val", "test"))

Rows = npt.NDArray[np.int64]


def rank_keys(content: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Return a reproducible random number for each content, uint64 (N,).

    The content is a cryptographic hash already; the seed is mixed in by the finaliser of SplitMix64 (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
    """
    with np.errstate(over="ignore"):
        key = content[:, 0] + np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15)
        for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
            key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
        mixed: npt.NDArray[np.uint64] = (key ^ (key >> np.uint64(31))) ^ content[:, 1]
    return mixed


def make_splits(
    *,
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    content: npt.NDArray[np.uint64],
    split: SplitSettings,
) -> npt.NDArray[np.int8]:
    """Assign each sample to train, val or test.

    Args:
        targets: Classes, int64 (N,), or zeros and ones, uint8 (N, K).
        content: Content hashes, uint64 (N, 2).
        split: Seed and fractions; a fraction of 0 leaves its split empty.

    Returns:
        int8 (N,), positions in ``SPLITS``.
    """
    units = _Units(targets, content, split.seed)
    split_of_unit = np.full(len(units.sizes), TRAIN, np.int8)
    for members in units.strata():
        sizes = units.sizes[members]
        val, test = _shares(int(sizes.sum()), split.val_fraction, split.test_fraction)
        in_val = _take(sizes, val, reserve=2 if test else 1)
        split_of_unit[members[in_val]] = VAL
        rest = members[~in_val][::-1]
        split_of_unit[rest[_take(units.sizes[rest], test, reserve=1)]] = TEST
    return split_of_unit[units.unit_of_row]


def make_folds(
    *,
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    content: npt.NDArray[np.uint64],
    seed: int,
    folds: int,
) -> npt.NDArray[np.int64]:
    """Assign each sample to a fold, 0 to ``folds - 1``, int64 (N,): stratified, identical contents in one fold."""
    units = _Units(targets, content, seed)
    fold_of_unit = np.zeros(len(units.sizes), np.int64)
    for number, members in enumerate(units.strata()):
        sizes = units.sizes[members]
        middles = np.cumsum(sizes) - (sizes + 1) // 2
        # each class starts at another fold; otherwise fold 0 would get all classes smaller than the number of folds
        fold_of_unit[members] = (middles * folds // max(int(sizes.sum()), folds) + number) % folds
    return fold_of_unit[units.unit_of_row]


def few_per_class(
    *,
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    content: npt.NDArray[np.uint64],
    seed: int,
    limit: int,
) -> npt.NDArray[np.bool_]:
    """Choose at most ``limit`` samples per class to keep: bool (N,).

    The choice is nested: the samples kept with a limit of 5 are among those kept with 10. An image with several labels
    counts for the rarest of them.
    """
    units = _Units(targets, content, seed)
    keep = np.zeros(len(targets), np.bool_)
    stratum_of_row = units.stratum[units.unit_of_row]
    order = np.lexsort((rank_keys(content, seed), stratum_of_row))
    starts = np.flatnonzero(np.diff(stratum_of_row[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    keep[order] = place < limit
    return keep


class _Units:
    """Units of identical contents; each unit is in the stratum of the rarest class that its samples show."""

    def __init__(
        self, targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8], content: npt.NDArray[np.uint64], seed: int
    ) -> None:
        _, first, self.unit_of_row, self.sizes = np.unique(
            content, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        self.keys = rank_keys(content[first], seed)
        rarity = _rarity(targets)
        self.stratum = np.full(len(self.sizes), np.iinfo(np.int64).max)
        np.minimum.at(self.stratum, self.unit_of_row, rarity)

    def strata(self) -> list[Rows]:
        """Return the units of each stratum in the order of their keys."""
        order = np.lexsort((self.keys, self.stratum))
        return np.split(order, np.flatnonzero(np.diff(self.stratum[order])) + 1) if len(order) else []


def _rarity(targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8]) -> Rows:
    """Return the rank of each sample's rarest class (0 is the rarest of all); samples without labels rank last."""
    if targets.ndim == 1:
        counts = np.bincount(targets)
        return np.argsort(np.argsort(counts, kind="stable"), kind="stable")[targets]
    classes = targets.shape[1]
    rank = np.argsort(np.argsort(targets.sum(axis=0, dtype=np.int64), kind="stable"), kind="stable")
    rarest: Rows = np.where(targets.astype(np.bool_), rank, classes).min(axis=1, initial=classes)
    return rarest


def _shares(total: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Compute the sizes of val and test to the nearest sample, at least 1 each as long as train keeps a sample.

    >>> _shares(100, 0.15, 0.15), _shares(3, 0.15, 0.15), _shares(2, 0.15, 0.15), _shares(1, 0.15, 0.15)
    ((15, 15), (1, 1), (1, 0), (0, 0))
    """
    ideal = np.array([total * val_fraction, total * test_fraction])
    share = np.maximum(np.floor(ideal + 0.5), ideal > 0)
    while share.sum() > max(total - 1, 0):
        # the split with the larger surplus gives one back; on a tie it is test, because val selects the model
        surplus = np.where(share > 0, share - ideal, -np.inf)
        share[1 if surplus[1] >= surplus[0] else 0] -= 1
    return int(share[0]), int(share[1])


def _take(sizes: npt.NDArray[np.int64], share: int, *, reserve: int) -> npt.NDArray[np.bool_]:
    """Select the units, from the first on, that fill a share; at least ``reserve`` units are left."""
    taken = np.zeros(len(sizes), np.bool_)
    allowed = len(sizes) - reserve
    if share == 0 or allowed <= 0:
        if share and len(sizes) == 2:
            taken[int(np.argmin(sizes))] = True
        return taken
    if sizes.max() == 1:
        taken[: min(share, allowed)] = True
        return taken
    filled = 0
    for position, size in enumerate(sizes):
        if filled + size <= share and allowed > 0:
            taken[position] = True
            filled += int(size)
            allowed -= 1
    if not filled:
        # there are only large groups of duplicates: take the smallest rather than leave the split empty
        taken[int(np.argmin(sizes))] = True
    return taken
