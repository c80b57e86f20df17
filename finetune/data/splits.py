"""Splits that are stratified and reproducible, keep identical images together, and hardly change as data is added.

Every sample has a rank key made from its *content* and the seed. Within a class the samples are ordered by their keys:
validation takes the lower end, test the upper end, training the middle. Hence:

- neither renaming a file nor listing the files in another order changes anything;
- identical contents have the same key and move as one unit, so they are never in two splits; a picture with more copies than
  a split has room for counts as one, so that the other images still give each split its share;
- a class gets its share to the nearest sample (as far as duplicates and its size allow) and always keeps a training sample;
- adding ``m`` samples to a class moves at most ``m`` of the old ones across each of the two boundaries, and none
  between validation and test. (To move none, each sample would have to be drawn independently, and shares would be inexact.)

If the data has groups, such as the images of one patient, groups move as one unit instead, together with copies of their
images (:mod:`finetune.data.group_splits`); only the first two rules then hold.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from finetune.data.group_splits import divide_groups
from finetune.data.groups import ALONE
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
    groups: Rows | None = None,
) -> npt.NDArray[np.int8]:
    """Assign each sample to train, val or test.

    Args:
        targets: Classes, int64 (N,), or zeros and ones, uint8 (N, K).
        content: Content hashes, uint64 (N, 2).
        split: Seed and fractions; a fraction of 0 leaves its split empty.
        groups: Group of each sample, int64 (N,), or ``ALONE``; no group lies in two splits. None for no groups.

    Returns:
        int8 (N,), positions in ``SPLITS``.
    """
    if groups is not None:
        fractions = (1 - split.val_fraction - split.test_fraction, split.val_fraction, split.test_fraction)
        parts = _parts_of_groups(targets, content, groups, seed=split.seed, fractions=fractions, cover=True)
        return parts.astype(np.int8)  # parts are numbered as TRAIN, VAL and TEST are
    units = _Units(targets, content, split.seed)
    split_of_unit = np.full(len(units.sizes), TRAIN, np.int8)
    for members in units.strata():
        sizes = units.sizes[members]
        total = int(_counted(sizes, lambda total: max(_shares(total, split.val_fraction, split.test_fraction))).sum())
        val, test = _shares(total, split.val_fraction, split.test_fraction)
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
    groups: Rows | None = None,
) -> npt.NDArray[np.int64]:
    """Assign each sample to a fold, 0 to ``folds - 1``, int64 (N,): stratified, with copies and groups in one fold."""
    if groups is not None:
        return _parts_of_groups(targets, content, groups, seed=seed, fractions=[1 / folds] * folds, cover=False)
    units = _Units(targets, content, seed)
    fold_of_unit = np.zeros(len(units.sizes), np.int64)
    for number, members in enumerate(units.strata()):
        sizes = _counted(units.sizes[members], lambda total: -(-total // folds))
        middles = np.cumsum(sizes) - (sizes + 1) // 2
        # each class starts at a different fold; otherwise fold 0 would get all classes smaller than the number of folds
        fold_of_unit[members] = (middles * folds // max(int(sizes.sum()), folds) + number) % folds
    return fold_of_unit[units.unit_of_row]


def few_per_class(
    *,
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    content: npt.NDArray[np.uint64],
    seed: int,
    limit: int,
    groups: Rows | None = None,
) -> npt.NDArray[np.bool_]:
    """Choose at most ``limit`` samples per class to keep: bool (N,).

    The choice is nested: the samples kept with a limit of 5 are among those kept with 10. An image with several labels
    counts for the rarest of them. A second copy of a picture, or a second image of a group, is chosen only after the first of
    every other one, so that few images show as much variety as possible.
    """
    units = _Units(targets, content, seed)
    keep = np.zeros(len(targets), np.bool_)
    stratum_of_row = units.stratum[units.unit_of_row]
    keys = rank_keys(content, seed)
    turn = _places(units.unit_of_row, stratum_of_row)
    if groups is not None:
        apart = np.where(groups == ALONE, np.arange(len(groups)) + len(groups), groups)
        turn = _places(keys, turn, apart, stratum_of_row, of=2)
    return np.less(_places(keys, turn, stratum_of_row, of=1), limit, out=keep)


def _places(*columns: npt.NDArray[np.generic], of: int | None = None) -> Rows:
    """Return the rank of each row among the rows that are equal in the last ``of`` columns, ordered by the first columns.

    >>> _places(np.array([3, 1, 2]), np.array([0, 0, 1]), of=1).tolist()
    [1, 0, 0]
    """
    order = np.lexsort(columns)
    same = columns if of is None else columns[-of:]
    new = np.zeros(len(order), np.bool_)
    new[:1] = True
    for column in same:
        new[1:] |= column[order][1:] != column[order][:-1]
    starts = np.flatnonzero(new)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return places


def _parts_of_groups(
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8],
    content: npt.NDArray[np.uint64],
    groups: Rows,
    *,
    seed: int,
    fractions: Sequence[float],
    cover: bool,
) -> Rows:
    """Divide samples without dividing groups or copies of one picture: the part of each sample, int64 (N,)."""
    if not len(content):
        return np.zeros(0, np.int64)
    _, first, picture = np.unique(content, axis=0, return_index=True, return_inverse=True)
    pictures = len(first)
    grouped = np.flatnonzero(groups != ALONE)
    nodes = pictures + int(groups.max(initial=-1)) + 1
    links = coo_array((np.ones(len(grouped)), (picture[grouped], pictures + groups[grouped])), shape=(nodes, nodes))
    _, component = connected_components(links, directed=False)
    # components are numbered by their smallest key, so that the order of the files does not matter
    keys = rank_keys(content[first], seed)
    smallest = np.full(nodes, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, component[:pictures], keys)
    names, unit_of_picture = np.unique(component[:pictures], return_inverse=True)
    order = np.argsort(smallest[names], kind="stable")
    unit_of_picture = np.argsort(order)[unit_of_picture]
    # each picture counts once, however many copies it has
    shown = targets[first]
    rows, columns = (np.arange(pictures), shown) if shown.ndim == 1 else np.nonzero(shown)
    width = int(targets.max(initial=0)) + 1 if targets.ndim == 1 else targets.shape[1]
    counts = csr_array(
        coo_array((np.ones(len(rows)), (unit_of_picture[rows], columns)), shape=(len(names), width)), dtype=np.float64
    )
    sizes = np.bincount(unit_of_picture, minlength=len(names))
    parts = divide_groups(counts, sizes=sizes, keys=smallest[names][order], fractions=fractions, cover=cover)
    divided: Rows = parts[unit_of_picture[picture]]
    return divided


def _counted(sizes: npt.NDArray[np.int64], largest: Callable[[int], int]) -> npt.NDArray[np.int64]:
    """Count a unit with more copies than a split can hold as one; return the counted sizes of the units, int64.

    Args:
        sizes: Number of samples of each unit.
        largest: Function from a number of samples to the size of the largest split made from them.

    >>> _counted(np.array([1, 900, 1, 2]), lambda total: total // 4).tolist()
    [1, 1, 1, 1]
    """
    while True:
        counted = np.where(sizes > max(largest(int(sizes.sum())), 1), 1, sizes)
        if (counted == sizes).all():
            return counted
        sizes = counted


class _Units:
    """Units of samples with identical contents; each is in the stratum of the rarest class that its samples show."""

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
    """Compute the sizes of val and test to the nearest sample; at least 1 each, as long as train keeps a sample.

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
    """Select units in order until the share is filled, leaving at least ``reserve`` units."""
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
        # all units are larger than the share: take the smallest rather than leave the split empty
        taken[int(np.argmin(sizes))] = True
    return taken
