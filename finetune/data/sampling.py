"""Sample order and randomness, keyed by (seed, phase, epoch, sample), with no generator state to carry.

A random number depends only on its key: not on how many were drawn before, on the process that draws it, on the number
of workers, or on whether the run was interrupted. NumPy promises that the raw output of a bit generator never changes
between versions (NEP 19) but makes no such promise for ``Generator.permutation``, so only raw output is used.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from finetune.counted import counted

Rows = npt.NDArray[np.int64]


def key(*parts: int | str) -> int:
    """Hash the parts to a 63-bit number, which torch takes as a seed.

    >>> key(0, "order", "head", 1) == key(0, "order", "head", 1)
    True
    >>> key(1, 23) == key(12, 3)
    False
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(count: int, *parts: int | str) -> npt.NDArray[np.uint64]:
    """Return ``count`` raw 64-bit random numbers for a key."""
    return np.random.Philox(key=key(*parts)).random_raw(count)


def shuffled(rows: Rows, *parts: int | str) -> Rows:
    """Shuffle rows into an order that depends on the key alone.

    >>> shuffled(np.arange(5), 0, "order") .tolist() == shuffled(np.arange(5), 0, "order").tolist()
    True
    """
    ordered: Rows = rows[np.argsort(uniform(len(rows), *parts), kind="stable")]
    return ordered


def drawn(rows: Rows, weights: npt.NDArray[np.float64], *parts: int | str) -> Rows:
    """Draw as many rows as given, with replacement and in proportion to their weights, by a key.

    Args:
        rows: Rows to draw from.
        weights: Non-negative weights, one per row, not all zero.
        *parts: Components of the key.
    """
    edges = np.cumsum(weights, dtype=np.float64)
    points = uniform(len(rows), *parts).astype(np.float64) / 2.0**64 * edges[-1]
    chosen: Rows = rows[np.minimum(np.searchsorted(edges, points, side="right"), len(rows) - 1)]
    return chosen


def views_of(rows: Rows, *, epoch: int, views: int | None, seed: int, phase: str) -> Rows:
    """Return the number of the view that an epoch takes of each image, where a phase draws from a pool of views.

    The first ``views`` epochs take one view after the other, so that a pool as large as the number of epochs imposes no
    restriction. Later epochs draw from the pool, for each image separately.

    Args:
        rows: Rows of the index.
        epoch: Epoch of the phase, from 0.
        views: Size of the pool; None for an unlimited pool.
        seed: Seed of the run.
        phase: Name of the phase.

    >>> views_of(np.arange(4), epoch=1, views=2, seed=0, phase="head").tolist()
    [1, 1, 1, 1]
    >>> sorted(set(views_of(np.arange(40), epoch=2, views=2, seed=0, phase="head").tolist()))
    [0, 1]
    """
    if views is None or epoch < views:
        return np.full(len(rows), epoch, np.int64)
    return np.array([key(seed, "pool", phase, epoch, int(row)) % views for row in rows], np.int64)


class BatchKey(NamedTuple):
    """The key of one process's share of one batch; the data set turns it into tensors."""

    epoch: int
    step: int
    rows: Rows
    # images in the whole batch, over all processes
    global_size: int
    world: int


class ViewChunk(NamedTuple):
    """The key of images of which activations are computed together: some rows in one of several requested views."""

    # position of the view among those requested
    view: int
    # number of the chunk among those of the view
    chunk: int
    rows: Rows


def batch_count(rows: int, batch_size: int) -> int:
    """Return the number of batches in an epoch: at most ``batch_size`` images each; of three if one would be left over.

    >>> [batch_count(*case) for case in ((8, 4), (9, 4), (6, 2), (7, 2), (3, 2), (1, 2), (3, 1))]
    [2, 3, 3, 3, 1, 1, 3]
    """
    batches = -(-rows // batch_size)
    # nearly equal batches hold a single image only if batch_size is 2 and the number of images is odd
    return max(1, rows // 2) if batch_size == 2 else batches


class TrainBatches(Sampler[BatchKey]):
    """The batches of an epoch in keyed order, nearly equal in size: none is dropped and none is a single image.

    Each ``iter()`` gives the next epoch. Lightning makes the first iterator before it sets the epoch, and workers fetch
    ahead of it (lightning#21938); so this sampler gets its starting point once and counts the epochs itself.

    Args:
        rows: Rows to train on.
        batch_size: Most images in one batch over all processes (see :func:`batch_count`).
        seed: Seed of the run.
        phase: Name of the phase.
        rank: Rank of this process.
        world: Number of processes; each takes every ``world``-th row of a batch.
        weights: Sampling weights, one per row: rows are drawn in proportion to them. None takes each row once.

    Raises:
        ValueError: A batch has fewer rows than there are processes.
    """

    def __init__(
        self,
        *,
        rows: Rows,
        batch_size: int,
        seed: int,
        phase: str,
        rank: int = 0,
        world: int = 1,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._rows, self._weights = rows, weights
        self._seed, self._phase, self._rank, self._world = seed, phase, rank, world
        self._count = batch_count(len(rows), batch_size)
        if len(rows) // self._count < world:
            raise ValueError(
                f"data.batch_size={batch_size}: the smallest batch has {counted(len(rows) // self._count, 'image')} for {world} "
                "processes. Use a larger batch, or fewer devices."
            )
        self._next = (0, 0)

    def __len__(self) -> int:
        return self._count

    def start_at(self, epoch: int, step: int) -> None:
        """Set the epoch and the batch at which the next iterator begins."""
        self._next = (epoch, step)

    def order(self, epoch: int) -> Rows:
        """Return all rows of an epoch in order."""
        parts = (self._seed, "order", self._phase, epoch)
        return shuffled(self._rows, *parts) if self._weights is None else drawn(self._rows, self._weights, *parts)

    def __iter__(self) -> Iterator[BatchKey]:
        epoch, first = self._next
        self._next = (epoch + 1, 0)
        batches = np.array_split(self.order(epoch), self._count)
        for step in range(first, self._count):
            batch = batches[step]
            yield BatchKey(epoch, step, batch[self._rank :: self._world], len(batch), self._world)


class EvalBatches(Sampler[BatchKey]):
    """Batches of every row once, in order, over all processes together; without padding, so that no image counts twice.

    Args:
        rows: Rows to evaluate.
        batch_size: Most images in one batch of one process.
        rank: Rank of this process.
        world: Number of processes.
    """

    def __init__(self, *, rows: Rows, batch_size: int, rank: int = 0, world: int = 1) -> None:
        own_rows = rows[rank::world]
        self._batches = [own_rows[at : at + batch_size] for at in range(0, len(own_rows), batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[BatchKey]:
        for step, rows in enumerate(self._batches):
            yield BatchKey(0, step, rows, len(rows), 1)
