"""The cached activations of a phase: the frozen prefix's output for every view, computed once and stored on disk."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.activation_cache.device_rows import DeviceRows, room_on
from finetune.activation_cache.frozen_prefix import Prefix, in_half_precision
from finetune.activation_cache.policy import CachePolicy
from finetune.activation_cache.store import Entry, Layout, open_entry, why_unusable
from finetune.counted import in_bytes
from finetune.data.image_source import Source
from finetune.data.loading import ImageViews, ViewRequest
from finetune.data.sampling import Rows, ViewChunk
from finetune.errors import FileError
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone
from finetune.models.classifier import Classifier
from finetune.models.user_modules import OWN, code_digest, modules_digest
from finetune.models.weights import state_hash
from finetune.phases import ResolvedPhase
from finetune.plain import Json
from finetune.versions import versions

log = logging.getLogger(__name__)

# rows computed, checked and claimed together: enough to keep the processor busy, few enough to share among processes
CHUNK_ROWS = 64


class SplitView(NamedTuple):
    """One view of all images of a split."""

    split: str
    view: ViewRequest = ViewRequest()


class ActivationStore:
    """Opens entries of activations after one stage, and computes the rows that are missing; :func:`open_store` makes it.

    Args:
        prefix: Frozen stages that compute the activations.
        images: Images, and a loader of their views.
        shape: Shape of one activation.
        dtype: Dtype of the activations.
        key: Everything that an activation depends on, except the split and the view.
        about: Network and stage, for the list of the cache.
        seed: Seed of the run; part of the key of augmented views.
        limit_bytes: Limit of the whole cache, in bytes.
        device: Device on which the prefix runs.
        context: Function that returns the context of the run's precision.
    """

    def __init__(
        self,
        *,
        prefix: Prefix,
        images: ImageViews,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        key: Mapping[str, Json],
        about: Mapping[str, Json],
        seed: int,
        limit_bytes: int,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._prefix: Prefix | None = prefix
        self._images, self._seed, self._key, self._about = images, seed, key, about
        self._limit, self._device, self._context = limit_bytes, device, context
        self.shape, self.dtype = shape, dtype
        self.reused = self.computed = 0

    def views(self, requests: Sequence[SplitView]) -> list[Entry]:
        """Return one entry per requested view, computing what is missing.

        Raises:
            FileError: The disk has filled up since the plan was made.
        """
        rows = [self._images.source.index.rows(request.split) for request in requests]
        entries = [self._open(request, view_rows) for request, view_rows in zip(requests, rows, strict=True)]
        computed = self._fill(entries, rows, [request.view for request in requests])
        self.reused, self.computed = self.reused + sum(map(len, rows)) - computed, self.computed + computed
        return entries

    def _open(self, request: SplitView, rows: Rows) -> Entry:
        view = request.view
        parts: dict[str, Json] = {"augment": view.augment}
        if view.augment != "none":
            parts |= {"seed": self._seed, "phase": view.phase, "view": view.number}
            listed = self._images.list_keys.get(view.augment)
            parts |= {} if listed is None else {"operations": [dict(key) for key in listed]}
            parts |= {"transform": dict(own)} if (own := self._images.transform_key) is not None else {}
        layout = Layout(
            rows=len(rows), shape=self.shape, dtype=str(self.dtype).removeprefix("torch."), chunk_rows=CHUNK_ROWS
        )
        about = {
            **self._about,
            "split": request.split,
            "augment": view.augment,
            "view": view.number,
            "rows": len(rows),
        }
        whole = {**self._key, "split": request.split, "view": parts}
        entry = open_entry(whole, layout=layout, about=about, limit_bytes=self._limit)
        if entry is None:
            raise FileError(
                f"cache: {why_unusable() or f'there is no longer room for {layout.bytes / 1e6:.0f} MB of activations'}. This run "
                "started with cached activations, and its result depends on them. Make room, or point FINETUNE_CACHE at another "
                "folder."
            )
        return entry

    def _fill(self, entries: list[Entry], rows: list[Rows], views: list[ViewRequest]) -> int:
        """Compute the missing chunks of all entries in one pass; return the number of rows computed here."""
        computed = 0
        # first the chunks that no process has claimed, then those that others left unfinished
        for wait in (False, True):
            if not any(entry.missing for entry in entries):
                break
            chunks = (
                ViewChunk(view=number, chunk=chunk, rows=rows[number][entry.layout.rows_of(chunk)])
                for number, entry in enumerate(entries)
                for chunk in entry.claimed(wait=wait)
            )
            for loaded in self._images.load(views, chunks):
                assert self._prefix is not None
                with self._context():
                    activations = self._prefix(loaded.images.to(self._device, non_blocking=True))
                entries[loaded.view].write(loaded.chunk, _bytes(activations.to("cpu", self.dtype)))
                computed += len(loaded.images)
        for entry in entries:
            entry.flush()
        return computed

    def release(self) -> None:
        """Release the network's copy once everything is computed."""
        self._prefix = None

    def tensor(self, values: Any) -> Tensor:
        """Return activations (B, ...) from their bytes (B, row bytes)."""
        return torch.from_numpy(values).view(self.dtype).view(-1, *self.shape)


def open_store(
    *,
    classifier: Classifier,
    images: ImageViews,
    cached_stage: str,
    seed: int,
    limit_bytes: int,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
) -> ActivationStore:
    """Move a network to a device, run its frozen prefix once for the shape and dtype of an activation, and return the store.

    Args:
        classifier: Model in evaluation mode up to the cached stage.
        images: Images, and a loader of their views.
        cached_stage: Stage after which activations are cached.
        seed: Seed of the run; part of the key of augmented views.
        limit_bytes: Limit of the whole cache, in bytes.
        device: Device on which the prefix runs.
        context: Function that returns the context of the run's precision.
    """
    classifier, spec = classifier.to(device), classifier.input_spec
    with context():
        image = torch.zeros(1, spec.channels, *spec.size, dtype=torch.uint8, device=device)
        activation = Prefix(classifier, cached_stage, fold=False)(image)
        # as where no activations are cached: some networks give single precision from half, so their dtype does not tell
        prefix = Prefix(classifier, cached_stage, fold=in_half_precision(device))
        half = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    key = depends_on(
        classifier.backbone,
        input_spec=spec,
        adapt=classifier.adapt,
        cached_stage=cached_stage,
        source=images.source,
        dtype=activation.dtype,
        autocast=half,
        folded=prefix.folded,
        device=device.type,
    )
    return ActivationStore(
        prefix=prefix,
        images=images,
        shape=tuple(activation.shape[1:]),
        dtype=activation.dtype,
        key=key,
        about={"backbone": classifier.backbone.name, "cached_stage": cached_stage},
        seed=seed,
        limit_bytes=limit_bytes,
        device=device,
        context=context,
    )


def depends_on(
    backbone: Backbone,
    *,
    input_spec: InputSpec,
    adapt: str,
    cached_stage: str,
    source: Source,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    folded: bool,
    device: str,
) -> dict[str, Json]:
    """Return everything that a cached activation depends on, except the split and the view: the first parts of its key.

    Args:
        backbone: Backbone that computes the activations.
        input_spec: Input of the network.
        adapt: Method that adapted the images' channels to the stem.
        cached_stage: Stage after which activations are cached.
        source: Source of the images.
        dtype: Dtype of the activations.
        autocast: Dtype of mixed precision; None without it.
        folded: Whether BatchNorm is folded into the convolutions.
        device: Type of the device that computes.
    """
    stages = backbone.stages[: backbone.stages.index(cached_stage) + 1]
    state = {n: t for n, t in backbone.state_dict().items() if backbone.stage_of(n.removeprefix("net.")) in stages}
    # the version of a library identifies its code; user-supplied code may have changed since
    own: dict[str, Json] = {}
    if backbone.source == OWN:
        own = {
            "code": code_digest(type(module) for module in backbone.net.modules()),
            "modules": modules_digest(backbone.net),
        }
    return {
        **own,
        "weights": state_hash(state),
        "model": {"backbone": backbone.describe(), "input_spec": input_spec.to_dict(), "adapt": adapt},
        "cached_stage": cached_stage,
        "data": source.index.fingerprint(),
        "reading": {**source.decode_options.to_plain(), "channels": source.decode_options.channels},
        "dtype": str(dtype),
        "autocast": "off" if autocast is None else str(autocast),
        "float32": _float32_precision(device),
        "folded": folded,
        "device": device,
        # includes our own version, because a release may change the views
        "versions": versions(),
    }


def _float32_precision(device: str) -> list[str]:
    """Return how a device multiplies and convolves in single precision, which PyTorch can be set to round."""
    backends: Any = torch.backends
    used = (
        (backends.cuda.matmul, backends.cudnn.conv)
        if device == "cuda"
        else (backends.mkldnn.matmul, backends.mkldnn.conv)
    )
    # not torch.get_float32_matmul_precision, which fails where a user has set one of these
    return [str(backend.fp32_precision) for backend in used]


class ActivationCache:
    """Holds the cached activations of one phase, from which its batches are read instead of images.

    Args:
        classifier: Model with the phase applied and the prefix's weights loaded.
        phase: Phase that trains on the cache.
        policy: Cached stage and number of views.
        images: Images, and a loader of their views.
        seed: Seed of the run; part of the key of augmented views.
        limit_bytes: Limit of the whole cache, in bytes.
    """

    def __init__(
        self,
        *,
        classifier: Classifier,
        phase: ResolvedPhase,
        policy: CachePolicy,
        images: ImageViews,
        seed: int,
        limit_bytes: int,
    ) -> None:
        assert policy.cached_stage is not None
        self.cached_stage = policy.cached_stage
        self._classifier, self._phase, self._images = classifier, phase, images
        self._seed, self._limit = seed, limit_bytes
        self._training_views = policy.views
        self._train: list[DeviceRows] = []
        self._val: DeviceRows | None = None
        self.on_device = False

    def prepare(
        self, *, device: torch.device, context: Callable[[], AbstractContextManager[Any]], trains: bool = True
    ) -> None:
        """Open the entries, and compute missing rows together with the other processes of the run.

        Args:
            device: Device on which the prefix runs.
            context: Function that returns the context of the run's precision.
            trains: Whether training follows: random views of training images are prepared too, and the work done is reported.

        Raises:
            FileError: The disk has filled up since the plan was made.
        """
        self.close()
        store = open_store(
            classifier=self._classifier,
            images=self._images,
            cached_stage=self.cached_stage,
            seed=self._seed,
            limit_bytes=self._limit,
            device=device,
            context=context,
        )
        index = self._images.source.index
        # position of each index row in the entry of its split
        self._places = np.zeros(len(index), np.int64)
        for split in ("train", "val"):
            self._places[index.rows(split)] = np.arange(len(index.rows(split)))
        self._is_train = np.zeros(len(index), np.bool_)
        self._is_train[index.rows("train")] = True
        wants_train = trains or self.holds_evaluation_of_train
        *train, val = store.views([*(self._train_views() if wants_train else ()), SplitView("val")])
        store.release()
        size = sum(entry.layout.bytes for entry in (*train, val))
        self.on_device = size <= room_on(device)
        hold = partial(DeviceRows, shape=store.shape, dtype=store.dtype, device=device if self.on_device else None)
        self._train, self._val = [hold(entry) for entry in train], hold(val)
        if trains:
            done = f"cached {self.cached_stage} activations: {store.computed} computed, {store.reused} reused"
            where = f", in the memory of {device}" if self.on_device else ""
            log.info("  %s (%s%s)", done, in_bytes(size), where)

    @property
    def holds_evaluation_of_train(self) -> bool:
        """Tell whether the view of training images that is cached is the evaluation view."""
        return self._training_views is None

    def _train_views(self) -> list[SplitView]:
        """Return the views of training images that are cached."""
        if self._training_views is None:
            return [SplitView("train")]
        augment, name = self._phase.augment, self._phase.name
        return [
            SplitView("train", ViewRequest(augment=augment, phase=name, number=number))
            for number in range(self._training_views)
        ]

    def train(self, views: Rows, rows: Rows) -> Tensor:
        """Return activations (B, ...) of the given index rows, each in the view given for it."""
        places = self._places[rows]
        if len(self._train) == 1:
            return self._train[0](places)
        groups = [(view, np.flatnonzero(views == view)) for view in np.unique(views)]
        # read view by view, then put in the requested order
        parts = torch.cat([self._train[view](places[chosen]) for view, chosen in groups])
        order = torch.from_numpy(np.argsort(np.concatenate([chosen for _, chosen in groups])))
        return parts[order.to(parts.device)]

    def val(self, rows: Rows) -> Tensor:
        """Return activations (B, ...) of the evaluation view of validation rows; of training rows where that is their view."""
        assert self._val is not None
        held = self._train[0] if self.holds_evaluation_of_train and self._is_train[rows].all() else self._val
        return held(self._places[rows])

    def close(self) -> None:
        """Close the entries."""
        for rows in (*self._train, self._val):
            if rows is not None:
                rows.close()
        self._train, self._val, self.on_device = [], None, False


def eval_features(
    classifier: Classifier,
    images: ImageViews,
    *,
    splits: tuple[str, ...],
    limit_bytes: int,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
) -> dict[str, Tensor]:
    """Return pooled features (N, D) float32 of the evaluation view of every image of the given splits, using the cache.

    Args:
        classifier: Model in evaluation mode.
        images: Images, and a loader of their views.
        splits: Names of the splits.
        limit_bytes: Limit of the whole cache, in bytes.
        device: Device that computes missing features.
        context: Function that returns the context of the run's precision.
    """
    cached_stage = classifier.backbone.stages[-1]
    store = open_store(
        classifier=classifier,
        images=images,
        cached_stage=cached_stage,
        seed=0,
        limit_bytes=limit_bytes,
        device=device,
        context=context,
    )
    features = {}
    for split, entry in zip(splits, store.views([SplitView(split) for split in splits]), strict=True):
        features[split] = store.tensor(entry.read(np.arange(entry.layout.rows))).float()
        entry.close()
    return features


def _bytes(activations: Tensor) -> Any:
    """View rows as bytes (B, row bytes)."""
    return activations.contiguous().view(len(activations), -1).view(torch.uint8).numpy()
