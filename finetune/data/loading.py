"""Batches of views, as training and evaluation steps receive them, and the data sets that make them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from finetune.data.image_source import Source
from finetune.data.sampling import BatchKey, Rows, ViewChunk, key, views_of

if TYPE_CHECKING:  # an audit makes no views, and torchvision takes two seconds
    from finetune.data.transforms import View

# more threads would mostly wait for Python's lock
_MOST_THREADS = 8


class Position(NamedTuple):
    """The position of a batch in its phase."""

    epoch: int
    step: int
    # images in the whole batch, over all processes that share it
    global_size: int
    world: int


class Batch(NamedTuple):
    """The input of a training or evaluation step."""

    # uint8 (B, C, H, W); in a phase that trains on cached activations, the activations (B, ...)
    images: torch.Tensor
    targets: torch.Tensor  # int64 (B,)
    rows: torch.Tensor  # int64 (B,), rows of the index
    # plain numbers instead of tensors: reading them must not wait for a device
    position: Position


class LoadedChunk(NamedTuple):
    """The images of a :class:`~finetune.data.sampling.ViewChunk`."""

    view: int
    chunk: int
    images: torch.Tensor  # uint8 (B, C, H, W)


class ViewRequest(NamedTuple):
    """A request for one view of images outside training.

    ``augment`` names a training view; ``none`` is the evaluation view. A random view is view ``number`` of ``phase``.
    """

    augment: str = "none"
    phase: str = ""
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageViews:
    """The images of a data set in any view, from which activations are computed.

    Args:
        source: Source of the images.
        transform_key: Values that identify a user-supplied transform after each random view; None without one.
        list_keys: Values that identify the operations of each list of operations, by the name of its view.
        load: Returns the images of chunks of the requested views; the chunks are consumed one after the other.
    """

    source: Source
    transform_key: Mapping[str, Any] | None
    list_keys: Mapping[str, Sequence[Mapping[str, Any]]]
    load: Callable[[Sequence[ViewRequest], Iterable[ViewChunk]], Iterable[LoadedChunk]]


def threads_here(source: Source) -> int:
    """Choose the number of threads that make a batch's views: 1 in a loader process, which has siblings, else torch's."""
    if get_worker_info() is not None or not getattr(source, "many_threads", False):
        return 1
    return min(_MOST_THREADS, torch.get_num_threads())


def views_of_rows(
    source: Source, view: "View", rows: Sequence[int], *, seeds: Sequence[int] | None, threads: int
) -> list[torch.Tensor]:
    """Make one view of each row, uint8 (C, H, W), in order; the result does not depend on the number of threads.

    Args:
        source: Data set that gives the images.
        view: View to make of each image.
        rows: Rows of the index.
        seeds: Random seed of each row's view; None for a view that draws nothing.
        threads: Number of threads; they run in parallel because decoding and resizing release Python's lock.
    """
    row_seeds: Sequence[int | None] = [None] * len(rows) if seeds is None else seeds

    # a photograph much larger than the view needs is decoded at a reduced size
    read = partial(source.read, min_side=view.min_side)

    def whole(row: int, seed: int | None) -> torch.Tensor:
        image = read(row)
        return view(image) if seed is None else view(image, torch.Generator().manual_seed(seed))

    if threads == 1:
        return _in_order(view, map(read, rows), row_seeds)
    with ThreadPoolExecutor(threads) as pool:
        if seeds is not None and view.global_randomness:
            # only one view at a time may draw from torch's global generator
            return _in_order(view, pool.map(read, rows), row_seeds)
        return list(pool.map(whole, rows, row_seeds))


def _in_order(view: "View", images: Iterable[torch.Tensor], seeds: Sequence[int | None]) -> list[torch.Tensor]:
    """Make one view after the other from torch's global generator, and restore that generator afterwards."""
    before, views = torch.get_rng_state(), []
    for image, seed in zip(images, seeds, strict=True):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        views.append(view(image))
    torch.set_rng_state(before)
    return views


class ViewDataset(Dataset[Batch]):
    """One view of each image of a source; a view is a pure function of (seed, phase, view number, row).

    Args:
        source: Data set that gives the images.
        view: View that turns an image of the source into one of the input's size.
        seed: Seed of the run; part of the key of every random view.
        phase: Name of the phase; None for views that draw nothing.
        views: Number of views of each image that the epochs draw from; None makes a new view every epoch.
    """

    def __init__(
        self, *, source: Source, view: "View", seed: int = 0, phase: str | None = None, views: int | None = None
    ) -> None:
        self._source, self._view, self._seed, self._phase, self._views = source, view, seed, phase, views

    def __getitems__(self, batch: BatchKey) -> Batch:
        """Return one whole batch; torch's map-style fetcher looks for a method of this name."""
        numbers: Rows | None = None
        if self._phase is not None:
            numbers = views_of(batch.rows, epoch=batch.epoch, views=self._views, seed=self._seed, phase=self._phase)
        return Batch(
            images=self.images(batch.rows, numbers),
            targets=torch.from_numpy(self._source.index.targets[batch.rows]),
            rows=torch.from_numpy(batch.rows),
            position=Position(batch.epoch, batch.step, batch.global_size, batch.world),
        )

    def images(self, rows: Rows, numbers: Rows | None) -> torch.Tensor:
        """Return images uint8 (B, C, H, W) of the given rows.

        Args:
            rows: Rows of the index.
            numbers: Number of the view of each row; None for views that draw nothing.
        """
        seeds: list[int] | None = None
        if numbers is not None:
            assert self._phase is not None, "random views have a phase in their key"
            pairs = zip(rows.tolist(), numbers.tolist(), strict=True)
            seeds = [key(self._seed, "view", self._phase, number, row) for row, number in pairs]
        threads = threads_here(self._source)
        return torch.stack(views_of_rows(self._source, self._view, rows.tolist(), seeds=seeds, threads=threads))


class ManyViews(Dataset[LoadedChunk]):
    """Several views of the images of a source.

    Args:
        views: Data set of each view, and the number of the view in it; None for views that draw nothing.
    """

    def __init__(self, views: Sequence[tuple[ViewDataset, int | None]]) -> None:
        self._views = views

    def __getitems__(self, chunk: ViewChunk) -> LoadedChunk:
        """Return the images of a whole chunk."""
        dataset, number = self._views[chunk.view]
        numbers = None if number is None else np.full(len(chunk.rows), number, np.int64)
        return LoadedChunk(view=chunk.view, chunk=chunk.chunk, images=dataset.images(chunk.rows, numbers))
