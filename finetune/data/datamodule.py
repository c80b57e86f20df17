"""The LightningDataModule: batches made from a source, a view, and the sample order of one phase."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol, TypeVar

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from finetune.counted import counted
from finetune.data.image_source import Source
from finetune.data.loading import Batch, ImageViews, LoadedChunk, ManyViews, Position, ViewDataset, ViewRequest
from finetune.data.sampling import BatchKey, EvalBatches, Rows, TrainBatches, ViewChunk, batch_count, views_of
from finetune.data.transforms import AugmentList, UserTransform, View, eval_view, train_view
from finetune.distributed import MOST_LOADERS_PER_CORE, cores, ignore_signals_to_the_group, require_processes
from finetune.errors import UserError
from finetune.input_spec import InputSpec

Loaded = TypeVar("Loaded", Batch, LoadedChunk)

# measured on two cores (see `default_workers`); up to four are treated alike
FEW_CORES = 4


class Activations(Protocol):
    """The cached activations of a network's frozen prefix for the views of a phase."""

    @property
    def on_device(self) -> bool:
        """Tell whether the activations are already in the memory of the training device."""
        ...

    def prepare(self, *, device: torch.device, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Compute the missing activations; every process of the run calls this inside the fit.

        Args:
            device: Device that computes the activations.
            context: Factory of the precision context of the run.
        """
        ...

    def train(self, views: Rows, rows: Rows) -> torch.Tensor:
        """Return activations (B, ...) for rows of the index, each for one of the row's training views."""
        ...

    def val(self, rows: Rows) -> torch.Tensor:
        """Return activations (B, ...) of the evaluation view of validation rows."""
        ...


class ActivationDataset(Dataset[Batch]):
    """A data set of cached activations in place of images.

    Args:
        source: Source of the targets.
        activations: Cached activations.
        seed: Seed of the run.
        phase: Name of the phase; None for validation rows.
        views: Number of views per image, as in :class:`ViewDataset`.
    """

    def __init__(
        self,
        *,
        source: Source,
        activations: Activations,
        seed: int = 0,
        phase: str | None = None,
        views: int | None = None,
    ) -> None:
        self._source, self._activations = source, activations
        self._seed, self._phase, self._views = seed, phase, views

    def __getitems__(self, batch: BatchKey) -> Batch:
        """Return one whole batch."""
        if self._phase is None:
            images = self._activations.val(batch.rows)
        else:
            numbers = views_of(batch.rows, epoch=batch.epoch, views=self._views, seed=self._seed, phase=self._phase)
            images = self._activations.train(numbers, batch.rows)
        return Batch(
            images=images,
            targets=torch.from_numpy(self._source.index.targets[batch.rows]),
            rows=torch.from_numpy(batch.rows),
            position=Position(batch.epoch, batch.step, batch.global_size, batch.world),
        )


def _whole(loaded: Loaded) -> Loaded:
    """Return what the data set gave, which is a whole batch already."""
    return loaded


def _begin_loader(worker: int, then: Callable[[int], None] | None) -> None:
    """Set up a loader process: let the main process handle signals sent to the whole run."""
    ignore_signals_to_the_group()
    if then is not None:
        then(worker)


def default_workers(source: Source, *, on_cpu: bool) -> int:
    """Choose the number of loader processes: 0 for data in memory, else one less than the cores, between 1 and 8.

    It is also 0 if the network computes on the same few cores: threads read a batch before the network computes it, so they do
    not compete with it, and they take no extra memory. On two cores, with ResNet-18 and photographs, a training epoch is
    1.04 times as fast as with one loader process, and a pass of a frozen prefix 1.1 times. With slow disks, loader processes
    always help, because they read ahead.
    """
    # with fewer torch threads than cores, a core is left for a loader process
    crowded = on_cpu and cores() <= min(FEW_CORES, torch.get_num_threads())
    threads_do = crowded and getattr(source, "many_threads", False)
    return 0 if threads_do or getattr(source, "in_memory", False) else min(8, max(1, cores() - 1))


class ImageDataModule(pl.LightningDataModule):
    """Training, validation and test batches of one source.

    Args:
        source: Data set that gives the images.
        spec: Input specification of the network.
        seed: Seed of the run.
        batch_size: Number of images in a training batch over all devices.
        eval_batch_size: Number of images in an evaluation batch of one device.
        num_workers: Number of loader processes; None chooses it by :func:`default_workers`. With 0, threads of this
            process read.
        augment: Training view of phases that name none.
        transform: User-supplied transform after each training view; None for none.
        augment_lists: Lists of operations that phases may name in place of a training view; None for none.
        sample_weights: Sampling weights, one per row of the index: training rows are drawn in proportion to them. None
            takes each row once.
        worker_init: Function called in each loader process with the worker's number; None for none.

    Raises:
        UserError: There would be more loader processes than this machine can hold.
    """

    def __init__(
        self,
        *,
        source: Source,
        spec: InputSpec,
        seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int | None = None,
        augment: str = "standard",
        transform: UserTransform | None = None,
        augment_lists: Mapping[str, AugmentList] | None = None,
        sample_weights: npt.NDArray[np.float64] | None = None,
        worker_init: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self.source, self.spec, self.seed = source, spec, seed
        self.transform = transform
        self.augment_lists = dict(augment_lists or {})
        self._eval_batch_size, self._sample_weights = eval_batch_size, sample_weights
        require_processes(num_workers or 0, setting="data.num_workers", per_core=MOST_LOADERS_PER_CORE)
        self._num_workers, self._worker_init = num_workers, worker_init
        self.begin_phase(name="train", batch_size=batch_size, augment=augment)

    @property
    def num_workers(self) -> int:
        """Return the number of loader processes, given the device of the Trainer this was last attached to."""
        if self._num_workers is not None:
            return self._num_workers
        on_cpu = not torch.accelerator.is_available()
        if self.trainer is not None:
            on_cpu = self.trainer.strategy.root_device.type == "cpu"
        return default_workers(self.source, on_cpu=on_cpu)

    def view(self, augment: str) -> View:
        """Return the training view of a name, or of a list of operations by its text."""
        return train_view(self.spec, augment=augment, transform=self.transform, lists=self.augment_lists)

    def begin_phase(
        self,
        *,
        name: str,
        batch_size: int,
        augment: str,
        views: int | None = None,
        activations: Activations | None = None,
    ) -> None:
        """Set up the training batches of the phase about to start.

        Args:
            name: Name of the phase.
            batch_size: Number of images in a batch over all devices.
            augment: Training view.
            views: Number of views of each image that the epochs draw from; None makes a new view every epoch.
            activations: Cached activations to use in place of images, in training and validation; None uses images.
        """
        self._phase, self._batch_size, self._augment = name, batch_size, augment
        self._views, self._activations = views, activations

    def setup(self, stage: str) -> None:
        """Compute the cached activations that the phase trains on; the processes share the work."""
        if stage == "fit" and self._activations is not None:
            assert self.trainer is not None
            self._activations.prepare(
                device=self.trainer.strategy.root_device, context=self.trainer.precision_plugin.forward_context
            )

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the number of training batches in an epoch."""
        return batch_count(len(self.source.index.rows("train")), batch_size)

    def _placement(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this process's share of the phase's batches, from where a restored Trainer stopped."""
        if self.trainer is None:
            return self.train_batches(0, 0)
        # unlike `trainer.current_epoch`, the count of all batches is also right at the end of an epoch
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]  # Lightning declares the base class
        rank, world = self._placement()
        return self.train_batches(*divmod(done, self.batches_per_epoch(self._batch_size)), rank=rank, world=world)

    def drop_iterator(self) -> None:
        """Rewind to the first iterator's start after a resume at an epoch's end, as none of its batches are used.

        Lightning makes one iterator before the validation that a resumed run still has to do, and another after it. Loader
        processes have already started on the first, so the order would be one epoch ahead.
        """
        if self._start[1] == 0:
            self._batches.start_at(*self._start)

    def mean_draws(self, split: str) -> npt.NDArray[np.float64] | None:
        """Return how often an epoch that drew from a split by the sampling weights would draw each of its rows, on average.

        None if training takes each row once.
        """
        if self._sample_weights is None:
            return None
        weights = self._sample_weights[self.source.index.rows(split)]
        draws: npt.NDArray[np.float64] = weights / weights.mean()
        return draws

    def train_batches(self, epoch: int, step: int, *, rank: int = 0, world: int = 1) -> DataLoader[Batch]:
        """Return the phase's batches from a given batch of a given epoch on; each iterator over them is one epoch.

        Args:
            epoch: Epoch of the phase, from 0.
            step: Batch of the epoch, from 0.
            rank: Rank of this process.
            world: Number of processes that share each batch.
        """
        rows = self.source.index.rows("train")
        try:
            batches = TrainBatches(
                rows=rows,
                batch_size=self._batch_size,
                seed=self.seed,
                phase=self._phase,
                rank=rank,
                world=world,
                weights=None if self._sample_weights is None else self._sample_weights[rows],
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        batches.start_at(epoch, step)
        self._batches, self._start = batches, (epoch, step)
        if self._activations is not None:
            stored = ActivationDataset(
                source=self.source,
                activations=self._activations,
                seed=self.seed,
                phase=self._phase,
                views=self._views,
            )
            return self._stored_loader(stored, batches, self._activations)
        view = self.view(self._augment)
        images = ViewDataset(source=self.source, view=view, seed=self.seed, phase=self._phase, views=self._views)
        return self._loader(images, batches)

    def image_views(self) -> ImageViews:
        """Return what the computation of activations needs: the images, and a loader of their views for this process alone."""
        key = None if self.transform is None else self.transform.key
        lists = {text: [own.key for own in listed.operations] for text, listed in self.augment_lists.items()}
        return ImageViews(source=self.source, transform_key=key, list_keys=lists, load=self._load_views)

    def _load_views(self, requests: Sequence[ViewRequest], chunks: Iterable[ViewChunk]) -> Iterable[LoadedChunk]:
        """Return the images of each chunk of the requested views, for this process alone.

        Args:
            requests: Views to make.
            chunks: Rows of these views; consumed one after the other.
        """
        views: list[tuple[ViewDataset, int | None]] = []
        for request in requests:
            phase, number = (None, None) if request.augment == "none" else (request.phase, request.number)
            view = self.view(request.augment)
            views.append((ViewDataset(source=self.source, view=view, seed=self.seed, phase=phase), number))
        return self._loader(ManyViews(views), chunks, persistent=False)

    def check_processes(self, world: int, batch_sizes: Iterable[int]) -> None:
        """Check, before any process starts, that each of them would get images.

        Raises:
            UserError: A training batch, or a split, has fewer images than there are processes.
        """
        for batch_size in batch_sizes:
            try:
                TrainBatches(rows=self.source.index.rows("train"), batch_size=batch_size, seed=0, phase="", world=world)
            except ValueError as error:
                raise UserError(str(error)) from error
        for split in ("val", "test"):
            images = len(self.source.index.rows(split))
            if not images:
                raise UserError(
                    f"data.{split}_fraction: the {split} split is empty: a class needs at least three images to give each split "
                    f"one. Add images, raise data.{split}_fraction, or give a {split} split."
                )
            if images < world:
                raise UserError(
                    f"trainer.devices: {world} processes share the {split} split, which has {counted(images, 'image')}; "
                    "each needs at least one. Use fewer devices."
                )

    def eval_dataloader(
        self,
        split: str,
        *,
        rows: Rows | None = None,
        rank: int | None = None,
        world: int | None = None,
        activations: Activations | None = None,
    ) -> DataLoader[Batch]:
        """Return the evaluation view of every image of a split, each once over all processes together.

        Args:
            split: Name of the split.
            rows: Rows of the split to return; None for all.
            rank: Rank of this process; None takes it from the Trainer that this was last attached to.
            world: Number of processes; None takes it from that Trainer.
            activations: Cached activations of the split to use in place of images; None uses images.
        """
        if rank is None or world is None:
            rank, world = self._placement()
        rows = (self.source.index.rows(split) if rows is None else rows)[rank::world]
        if activations is None:
            return self.rows_dataloader(rows)
        stored = ActivationDataset(source=self.source, activations=activations)
        return self._stored_loader(stored, EvalBatches(rows=rows, batch_size=self._eval_batch_size), activations)

    def rows_dataloader(self, rows: Rows) -> DataLoader[Batch]:
        """Return the evaluation view of the given rows, in their order, in this process."""
        batches = EvalBatches(rows=rows, batch_size=self._eval_batch_size)
        return self._loader(ViewDataset(source=self.source, view=eval_view(self.spec)), batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the batches of the validation split."""
        return self.eval_dataloader("val", activations=self._activations)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the batches of the test split."""
        return self.eval_dataloader("test")

    def _stored_loader(
        self, stored: ActivationDataset, batches: TrainBatches | EvalBatches, activations: Activations
    ) -> DataLoader[Batch]:
        # reading cached activations leaves no work for loader processes
        return self._loader(stored, batches, num_workers=0, pinned=not activations.on_device)

    def _loader(
        self,
        dataset: Dataset[Loaded],
        batches: Iterable[BatchKey] | Iterable[ViewChunk],
        *,
        num_workers: int | None = None,
        persistent: bool = True,
        pinned: bool = True,
    ) -> DataLoader[Loaded]:
        workers = self.num_workers if num_workers is None else num_workers
        return DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type] # it yields one key per batch for __getitems__
            collate_fn=_whole,
            num_workers=workers,
            persistent_workers=workers > 0 and persistent,
            worker_init_fn=partial(_begin_loader, then=self._worker_init),
            pin_memory=pinned and torch.cuda.is_available(),
        )
