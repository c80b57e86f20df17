"""Batches of views: what a training or evaluation step is handed, and how the images of one are made."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.data import Dataset, get_worker_info

from finetune.data.image_source import Source
from finetune.data.sampling import BatchKey, key, views_of
from finetune.data.transforms import View

# more at once wait for one another where they hold Python's lock
_MOST_THREADS = 8


class Position(NamedTuple):
    """Which batch this is."""

    epoch: int
    step: int
    # images in the whole batch, over the processes that share it
    global_size: int
    world: int


class Batch(NamedTuple):
    """What a training or evaluation step is handed."""

    # uint8 (B, C, H, W); or, of a phase that trains on cached activations, those (B, ...)
    images: torch.Tensor
    targets: torch.Tensor  # int64 (B,)
    rows: torch.Tensor  # int64 (B,), places in the index
    # plain numbers, not tensors: reading them must not wait for a device
    position: Position


def threads_here(source: Source) -> int:
    """Threads that make the views of a batch: one in a loader process, which has others beside it, else as many as torch has."""
    if get_worker_info() is not None or not getattr(source, "many_threads", False):
        return 1
    return min(_MOST_THREADS, torch.get_num_threads())


def views_of_rows(
    source: Source, view: View, rows: Sequence[int], *, seeds: Sequence[int] | None, threads: int
) -> list[torch.Tensor]:
    """One view of each row, uint8 (C, H, W), in their order; the same whatever the number of threads.

    Args:
        source: Where images come from.
        view: What is made of them.
        rows: Of the index.
        seeds: Of each row's randomness; None for a view that draws nothing.
        threads: Decoders and resizing let go of Python's lock.
    """
    given: Sequence[int | None] = [None] * len(rows) if seeds is None else seeds

    # a photograph much larger than the view needs is decoded smaller
    read = partial(source.read, at_least=view.at_least)

    def whole(row: int, seed: int | None) -> torch.Tensor:
        image = read(row)
        return view(image) if seed is None else view(image, torch.Generator().manual_seed(seed))

    if threads == 1:
        return _in_order(view, map(read, rows), given)
    with ThreadPoolExecutor(threads) as pool:
        if seeds is not None and view.global_randomness:
            # only one at a time may draw from torch's own generator
            return _in_order(view, pool.map(read, rows), given)
        return list(pool.map(whole, rows, given))


def _in_order(view: View, images: Iterable[torch.Tensor], seeds: Sequence[int | None]) -> list[torch.Tensor]:
    """One view after the other, its randomness from torch's own generator, which is left as it was."""
    before, views = torch.get_rng_state(), []
    for image, seed in zip(images, seeds, strict=True):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        views.append(view(image))
    torch.set_rng_state(before)
    return views


class ViewDataset(Dataset[Batch]):
    """One view of the images of a source; a view is a pure function of (seed, phase, its number, row).

    Args:
        source: Where images come from.
        view: Makes an image of the source into one of the input's size.
        seed: Seed of the run.
        phase: Name of the phase; None for views that draw nothing.
        views: Views of each image that the epochs draw from; None takes a new one every epoch.
    """

    def __init__(
        self, *, source: Source, view: View, seed: int = 0, phase: str | None = None, views: int | None = None
    ) -> None:
        self._source, self._view, self._seed, self._phase, self._views = source, view, seed, phase, views

    def __getitems__(self, batch: BatchKey) -> Batch:
        """One whole batch; the name is the one that torch's map-style fetcher looks for."""
        rows = batch.rows.tolist()
        seeds: list[int] | None = None
        if self._phase is not None:
            numbers = views_of(batch.rows, epoch=batch.epoch, views=self._views, seed=self._seed, phase=self._phase)
            pairs = zip(rows, numbers.tolist(), strict=True)
            seeds = [key(self._seed, "view", self._phase, number, row) for row, number in pairs]
        images = views_of_rows(self._source, self._view, rows, seeds=seeds, threads=threads_here(self._source))
        return Batch(
            images=torch.stack(images),
            targets=torch.from_numpy(self._source.index.targets[batch.rows]),
            rows=torch.from_numpy(batch.rows),
            position=Position(batch.epoch, batch.step, batch.global_size, batch.world),
        )


class ManyViews(Dataset[Batch]):
    """Batches of several views; which one is said by a batch's ``epoch``.

    Args:
        views: Each as a data set, and its number.
    """

    def __init__(self, views: list[tuple[ViewDataset, int]]) -> None:
        self._views = views

    def __getitems__(self, batch: BatchKey) -> Batch:
        """One whole batch."""
        dataset, number = self._views[batch.epoch]
        made = dataset.__getitems__(batch._replace(epoch=number))
        return made._replace(position=made.position._replace(epoch=batch.epoch))
