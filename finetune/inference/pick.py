"""What to label next: of images without labels, those most typical of groups that hold no labelled image (active learning)."""

import hashlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.confidence.thresholds import labels_shown
from finetune.confidence.unknown import unit_length
from finetune.counted import counted
from finetune.data.image_file import UnreadableImage, content_hash, read_image_file
from finetune.data.image_source import FileSource, Source
from finetune.data.transforms import EvalView
from finetune.file_schema import joined_labels
from finetune.inference.read_ahead import read_ahead
from finetune.inference.torch_engine import TorchEngine

Item = TypeVar("Item")

# N = images without labels, M = images with labels, D = features

Floats = npt.NDArray[np.floating]

# columns of the table in which somebody fills in the labels
COLUMNS = ("path", "label", "predicted", "probability")
# more clusters than that take minutes, and more labelled images than that fill them all
MOST_CLUSTERS, MOST_LABELLED = 500, 2000
# neighbours whose mean distance tells how typical an image is of its cluster
_NEIGHBOURS = 20
# rows of a cluster's distances that are computed at once
_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class PickedImage:
    """An image to label.

    Args:
        path: The file.
        predicted: What the network predicts; several labels are joined by ``;``.
        probability: Probability of its most probable class.
    """

    path: str
    predicted: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Picked:
    """Images to label, the most useful first.

    Args:
        images: The images.
        pool: Images that were chosen from.
        compared: Images with labels that they were compared with.
        labelled: Images that have labels.
        copies: Images left out because another has the same pixels.
        already_labelled: Images left out because they, or others of the same pixels, have labels already.
        unreadable: Files that cannot be read, each with the reason.
    """

    images: tuple[PickedImage, ...]
    pool: int
    compared: int
    labelled: int
    copies: int
    already_labelled: int
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Labelled:
    """The images with labels.

    Args:
        source: Their data set.
    """

    source: Source

    def paths(self) -> set[str]:
        """Return where its files lie, without links; empty where its images are no files."""
        index = self.source.index
        return (
            {os.path.realpath(index.path(row)) for row in range(len(index))}
            if isinstance(self.source, FileSource)
            else set()
        )

    def contents(self) -> set[bytes]:
        """Return the content hash of each file."""
        facts = self.source.facts
        return set() if facts is None else {content.tobytes() for content in facts.content}

    def some(self) -> list[int]:
        """Return the rows that are compared with: of many, :data:`MOST_LABELLED`, spread evenly."""
        count = len(self.source.index)
        return [int(row) for row in np.linspace(0, count - 1, min(count, MOST_LABELLED))]

    def reader(self, view: EvalView) -> Callable[[int], Tensor]:
        """Return a function that several threads may call, from a row to its evaluation view."""
        one_at_a_time = nullcontext() if self.source.many_threads else threading.Lock()

        def read(row: int) -> Tensor:
            with one_at_a_time:
                return view(self.source.read(row, min_side=view.min_side))

        return read


def pick(
    engine: TorchEngine,
    paths: Iterable[str],
    count: int,
    *,
    labelled: Labelled | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Picked:
    """Choose images to label by :func:`typical`; twelve bytes for each image and feature are kept in memory.

    An image has labels already if it is a file of the data set, or has the bytes of one, or the pixels of one that is compared
    with.

    Args:
        engine: The trained network.
        paths: Image files.
        count: Number of images to choose; all are returned where there are fewer.
        labelled: The images with labels; None for none.
        batch_size: Images in one forward pass.
        seed: Seed of the choice.
    """
    taught = _Reading(engine, batch_size)
    if labelled is not None:
        taught.read(labelled.some(), labelled.reader(engine.view), name=labelled.source.index.path)
    known_paths = set() if labelled is None else labelled.paths()
    known_contents = set() if labelled is None else labelled.contents()
    pool = _Reading(engine, batch_size, labelled=taught.seen)
    named = 0

    def wanted() -> Iterator[str]:
        nonlocal named
        for path in paths:
            if (
                os.path.realpath(path) in known_paths
                or _content(path, max_pixels=engine.options.max_pixels) in known_contents
            ):
                named += 1
            else:
                yield path

    pool.read(wanted(), engine.read, name=str)
    chosen: list[int] = []
    if pool.names:
        chosen = typical(pool.features(), taught.features(), min(count, len(pool.names)), seed=seed)
    return Picked(
        images=tuple(_picked(engine, os.path.abspath(pool.names[at]), pool.features()[at]) for at in chosen),
        pool=len(pool.names),
        compared=len(taught.names),
        labelled=0 if labelled is None else len(labelled.source.index),
        copies=pool.copies,
        already_labelled=named + pool.already_labelled,
        unreadable=tuple(pool.unreadable),
    )


def _content(path: str, *, max_pixels: int) -> bytes:
    """Return the content hash of a file; empty if it cannot be read, which its decoder will say."""
    try:
        return content_hash(read_image_file(path, max_pixels=max_pixels)).tobytes()
    except UnreadableImage:
        return b""


def left_out_in_words(picked: Picked) -> str:
    """Return in words which images were not chosen from; empty for none."""
    parts = [
        f"{counted(picked.copies, 'copy', 'copies')}" if picked.copies else "",
        f"{counted(picked.already_labelled, 'image')} of the run's own data" if picked.already_labelled else "",
        f"{counted(len(picked.unreadable), 'unreadable file')}" if picked.unreadable else "",
    ]
    return f"left out: {', '.join(filter(None, parts))}" if any(parts) else ""


def nothing_left_in_words(picked: Picked) -> str:
    """Return in words that no image is left to choose from, and why."""
    return f"nothing to choose from. {left_out_in_words(picked) or 'No image is there.'}"


class _Reading:
    """Images that have been read, each only once, with their features.

    Args:
        engine: The trained network.
        batch_size: Images in one forward pass.
        labelled: Digests of images that have labels already.
    """

    def __init__(self, engine: TorchEngine, batch_size: int, *, labelled: Collection[bytes] = ()) -> None:
        self._engine, self._batch_size, self._labelled = engine, batch_size, labelled
        self.seen: set[bytes] = set()
        self.names: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self.copies = self.already_labelled = 0
        self._features: list[Floats] = []

    def read(self, items: Iterable[Item], read: Callable[[Item], Tensor], *, name: Callable[[Item], str]) -> None:
        """Read images.

        Args:
            items: What stands for each image.
            read: Function from that to its evaluation view, uint8 (C, H, W); it may raise UserError.
            name: Function from that to its path.
        """
        for batch in read_ahead(items, read, batch_size=self._batch_size, path_of=name):
            images = []
            for result in batch:
                if result.value is None:
                    self.unreadable.append((name(result.item), result.error))
                    continue
                digest = hashlib.blake2b(result.value.numpy().tobytes(), digest_size=16).digest()
                if digest in self._labelled:
                    self.already_labelled += 1
                    continue
                if digest in self.seen:
                    self.copies += 1
                    continue
                self.seen.add(digest)
                self.names.append(name(result.item))
                images.append(result.value)
            if images:
                self._features.append(self._engine.features(images).numpy())

    def features(self) -> Floats:
        """Return the features (N, D) of the images that could be read."""
        if len(self._features) != 1:
            wide = self._engine.classifier.backbone.num_features
            self._features = [np.concatenate(self._features) if self._features else np.zeros((0, wide), np.float32)]
        return self._features[0]


def _picked(engine: TorchEngine, path: str, features_D: Floats) -> PickedImage:
    (probabilities_K,) = engine.answers(torch.from_numpy(features_D)[None]).probabilities_NK
    best = int(probabilities_K.argmax())
    shown = labels_shown(probabilities_K, engine.thresholds) if engine.multi_label else [best]
    return PickedImage(
        path=path, predicted=joined_labels(engine.classes, shown), probability=float(probabilities_K[best])
    )


def typical(pool_ND: Floats, labelled_MD: Floats, count: int, *, seed: int) -> list[int]:
    """Choose the typical images of clusters that hold no labelled one (TypiClust, Hacohen et al. 2022, arXiv 2202.02794).

    All images are put into as many clusters as there are labelled ones and ones to choose. Of each cluster without a labelled
    image, the largest first, the image with the smallest mean distance to its nearest neighbours in the cluster is chosen.
    Where that gives too few, the clusters with fewest labelled images, then the largest, give further ones.

    Args:
        pool_ND: Features of images without labels.
        labelled_MD: Features of images with labels.
        count: Number of images to choose, at most N.
        seed: Seed of the clusters.

    Returns:
        Positions of the images, the most useful first.
    """
    from sklearn.cluster import KMeans

    points = unit_length(np.concatenate([labelled_MD, pool_ND]))
    clusters = min(len(labelled_MD) + count, MOST_CLUSTERS, len(points))
    found = KMeans(clusters, n_init=1, random_state=seed).fit_predict(points)
    of_labelled, of_pool = found[: len(labelled_MD)], found[len(labelled_MD) :]
    pool = points[len(labelled_MD) :]
    labels = np.bincount(of_labelled, minlength=clusters)
    # in each cluster, the typical first
    waiting = {int(number): _by_typicality(pool, np.flatnonzero(of_pool == number)) for number in np.unique(of_pool)}
    sizes = {number: len(members) for number, members in waiting.items()}
    chosen: list[int] = []
    while len(chosen) < count:
        number = min(waiting, key=lambda one: (labels[one], -sizes[one], one))
        chosen.append(waiting[number].pop(0))
        labels[number] += 1
        if not waiting[number]:
            del waiting[number]
    return chosen


def _by_typicality(points_ND: Floats, members: npt.NDArray[np.int64]) -> list[int]:
    """Return the members of a cluster, those with the smallest mean distance to their nearest neighbours in it first."""
    if len(members) == 1:
        return [int(members[0])]
    own, neighbours = points_ND[members], min(_NEIGHBOURS, len(members) - 1)
    means_N = np.empty(len(members))
    # a large cluster's distances would fill the memory
    for start in range(0, len(members), _ROWS):
        squared = np.maximum(2 - 2 * own[start : start + _ROWS] @ own.T, 0)
        # an image is no neighbour of its own
        squared[np.arange(len(squared)), np.arange(start, start + len(squared))] = np.inf
        nearest = np.partition(squared, neighbours - 1, axis=1)[:, :neighbours]
        means_N[start : start + len(squared)] = np.sqrt(nearest).mean(1)
    return [int(at) for at in members[np.argsort(means_N, kind="stable")]]
