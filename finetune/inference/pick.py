"""What to label next: of images without labels, those that stand for many that no labelled image stands for (active learning)."""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from finetune.confidence.thresholds import labels_shown
from finetune.counted import counted
from finetune.file_schema import joined_labels
from finetune.inference.image_paths import find_images
from finetune.inference.read_ahead import read_ahead
from finetune.inference.torch_engine import TorchEngine
from finetune.run_folder import RunFolder

# N = images without labels, M = images with labels, D = features

Floats = npt.NDArray[np.floating]

# columns of the table in which somebody fills in the labels
COLUMNS = ("path", "label", "predicted", "probability")
# more clusters than that take minutes, and more labelled images than that fill them all
MOST_CLUSTERS, MOST_LABELLED = 500, 2000
# neighbours whose mean distance tells how typical an image is of its cluster
_NEIGHBOURS = 20


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
        known: Images left out because they, or others of the same pixels, have labels already.
        unreadable: Files that cannot be read, each with the reason.
    """

    images: tuple[PickedImage, ...]
    pool: int
    compared: int
    labelled: int
    copies: int
    known: int
    unreadable: tuple[tuple[str, str], ...]


def pick(
    engine: TorchEngine,
    paths: Iterable[str],
    count: int,
    *,
    labelled: Sequence[str] = (),
    batch_size: int = 32,
    seed: int = 0,
) -> Picked:
    """Choose images to label by :func:`typical`; four bytes for each image and feature are kept in memory.

    Args:
        engine: The trained network.
        paths: Image files.
        count: Number of images to choose; all are returned where there are fewer.
        labelled: Files that have labels already; of many, :data:`MOST_LABELLED` of them, spread evenly, are compared with.
        batch_size: Images in one forward pass.
        seed: Seed of the choice.
    """
    known = {os.path.abspath(path) for path in labelled}
    some = [labelled[at] for at in np.linspace(0, len(labelled) - 1, min(len(labelled), MOST_LABELLED)).astype(int)]
    taught = _Reading(engine, batch_size)
    taught.read(some)
    pool = _Reading(engine, batch_size, labelled=taught.seen)
    named = 0

    def wanted() -> Iterator[str]:
        nonlocal named
        for path in paths:
            if os.path.abspath(path) in known:
                named += 1
            else:
                yield path

    pool.read(wanted())
    chosen: list[int] = []
    if pool.paths:
        chosen = typical(pool.features(), taught.features(), min(count, len(pool.paths)), seed=seed)
    return Picked(
        images=tuple(_picked(engine, pool.paths[at], pool.features()[at]) for at in chosen),
        pool=len(pool.paths),
        compared=len(taught.paths),
        labelled=len(labelled),
        copies=pool.copies,
        known=named + pool.known,
        unreadable=tuple(pool.unreadable),
    )


def labelled_files(run: str | Path) -> list[str]:
    """Return the images of a run's own data, as its ``split.csv`` names them; empty for a bundle."""
    file = RunFolder(Path(run).expanduser()).split
    return list(find_images([file])) if file.is_file() else []


def left_out(picked: Picked) -> str:
    """Return in words which images were not chosen from; empty for none."""
    parts = [
        f"{counted(picked.copies, 'copy', 'copies')}" if picked.copies else "",
        f"{counted(picked.known, 'image')} of the run's own data" if picked.known else "",
        f"{counted(len(picked.unreadable), 'unreadable file')}" if picked.unreadable else "",
    ]
    return f"left out: {', '.join(filter(None, parts))}" if any(parts) else ""


def nothing_left(picked: Picked) -> str:
    """Return in words that no image is left to choose from, and why."""
    return f"nothing to choose from. {left_out(picked) or 'No image is there.'}"


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
        self.paths: list[str] = []
        self.unreadable: list[tuple[str, str]] = []
        self.copies = self.known = 0
        self._features: list[Floats] = []

    def read(self, paths: Iterable[str]) -> None:
        """Read files."""
        for batch in read_ahead(paths, self._engine.read, batch_size=self._batch_size, path_of=str):
            images = []
            for result in batch:
                if result.value is None:
                    self.unreadable.append((result.item, result.error))
                    continue
                digest = hashlib.blake2b(result.value.numpy().tobytes(), digest_size=16).digest()
                if digest in self._labelled:
                    self.known += 1
                    continue
                if digest in self.seen:
                    self.copies += 1
                    continue
                self.seen.add(digest)
                self.paths.append(result.item)
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
    image, the largest first, the one is chosen whose nearest neighbours in it are nearest. Where that gives too few, the clusters
    with fewest labelled images, then the largest, give further ones.

    Args:
        pool_ND: Features of images without labels.
        labelled_MD: Features of images with labels.
        count: Number of images to choose, at most N.
        seed: Seed of the clusters.

    Returns:
        Positions of the images, the most useful first.
    """
    from sklearn.cluster import KMeans

    points = _unit(np.concatenate([labelled_MD, pool_ND]))
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


def _unit(features_ND: Floats) -> npt.NDArray[np.float64]:
    features_ND = features_ND.astype(np.float64)
    return np.asarray(features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12))


def _by_typicality(points_ND: Floats, members: npt.NDArray[np.int64]) -> list[int]:
    """Return the members of a cluster, those with the smallest mean distance to their nearest neighbours in it first."""
    if len(members) == 1:
        return [int(members[0])]
    own = points_ND[members]
    distances = np.sqrt(np.maximum(2 - 2 * own @ own.T, 0))
    # an image is no neighbour of its own
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : min(_NEIGHBOURS, len(members) - 1)]
    return [int(at) for at in members[np.argsort(nearest.mean(1), kind="stable")]]
