"""Whether a phase trains on cached activations, of how many views, and why: decided before anything is computed."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from finetune.data.datamodule import ImageDataModule
from finetune.feature_store import features_folder, free_bytes
from finetune.models.classifier import Classifier
from finetune.models.modes import evaluating
from finetune.training.phases import Phase

# of the free room on the disk that the cache may take
_SHARE_OF_FREE = 0.5


@dataclass(frozen=True, kw_only=True)
class CacheChoice:
    """What was decided for one phase.

    Args:
        boundary: The stage whose output is cached; None where the phase trains on images.
        views: Views of each image that the phase draws from; None draws a new one every epoch.
        bytes: Estimate of what is written: the views of the training images, and the validation images.
        why: In words, for the plan.
    """

    boundary: str | None
    views: int | None
    bytes: int
    why: str

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values, for ``plan.json``."""
        return asdict(self)


def cached_fields(choice: CacheChoice) -> dict[str, Any]:
    """What the results of a phase say of its cache."""
    return {"cached_after": choice.boundary or "", "views": choice.views or 0}


def frozen_boundary(classifier: Classifier, phase: Phase) -> str | None:
    """The last stage of the frozen prefix at which the network can be cut; None where nothing before it is frozen.

    >>> # stem and layer1 frozen, layer2 trains: "layer1"; stem trains: None
    """
    prefix = []
    for stage in classifier.backbone.stages:
        if stage in phase.train:
            break
        prefix.append(stage)
    cuts = [stage for stage in prefix if stage in classifier.backbone.boundaries]
    return cuts[-1] if cuts else None


def pool_size(epochs: int) -> int:
    """Views of each image that ``cache: auto`` caches where the view is random: the square root of the epochs, rounded.

    The prefix then costs ``sqrt(epochs)`` passes instead of ``epochs``. Measured by ``tests/benchmarks/view_pool.py``.

    >>> [pool_size(epochs) for epochs in (1, 2, 5, 10, 30, 100)]
    [1, 1, 2, 3, 5, 10]
    """
    return max(1, round(math.sqrt(epochs)))


def choose_caches(
    classifier: Classifier, phases: Sequence[Phase], data: ImageDataModule, *, max_gb: float, item_bytes: int
) -> list[CacheChoice]:
    """One choice a phase.

    Args:
        classifier: The network.
        phases: The schedule.
        data: For the numbers of images.
        max_gb: Of the whole cache, 10^9 bytes.
        item_bytes: Bytes of one number of an activation: 2 in half precision, else 4.
    """
    images = {split: len(data.source.index.rows(split)) for split in ("train", "val")}
    return [_choose(classifier, phase, images, max_gb=max_gb, item_bytes=item_bytes) for phase in phases]


def _choose(
    classifier: Classifier, phase: Phase, images: dict[str, int], *, max_gb: float, item_bytes: int
) -> CacheChoice:
    def no(why: str, views: int | None = None) -> CacheChoice:
        return CacheChoice(boundary=None, views=views, bytes=0, why=why)

    explicit = phase.cache if isinstance(phase.cache, int) else None
    views = _views(phase)
    boundary = frozen_boundary(classifier, phase)
    if phase.cache == "off":
        return no("off, as asked for")
    if boundary is None:
        return no("nothing is frozen in front of what trains", explicit)
    if phase.mixup or phase.cutmix:
        return no("mixup and cutmix mix pixels, which a cached activation has no more", explicit)
    if features_folder() is None:
        return no("FINETUNE_CACHE=off", explicit)
    if phase.cache == "auto" and phase.epochs == 1 and phase.solver == "gradient" and not phase.lr_trials:
        return no("one epoch looks at each image once")
    shape = activation_shape(classifier, boundary)
    wanted = math.prod(shape) * item_bytes * (views * images["train"] + images["val"])
    if wanted > max_gb * 1e9:
        return no(f"{wanted / 1e9:.1f} GB of activations are more than cache.max_gb={max_gb:g}", explicit)
    if wanted > _SHARE_OF_FREE * free_bytes():
        return no(
            f"{wanted / 1e9:.1f} GB of activations are more than half of the {free_bytes() / 1e9:.1f} GB that are free",
            explicit,
        )
    return CacheChoice(
        boundary=boundary,
        views=views if phase.augment != "none" else None,
        bytes=wanted,
        why=f"after {boundary}, {_in_words(phase, views)}",
    )


def _views(phase: Phase) -> int:
    """Views of each training image to cache."""
    if phase.augment == "none":
        return 1
    if isinstance(phase.cache, int):
        return min(phase.cache, phase.epochs)
    return pool_size(phase.epochs)


def _in_words(phase: Phase, views: int) -> str:
    if phase.augment == "none":
        return "the one view of each image"
    if views >= phase.epochs:
        return f"{views} views of each image, one an epoch"
    return f"{views} views of each image for {phase.epochs} epochs"


@torch.no_grad()
def activation_shape(classifier: Classifier, boundary: str) -> tuple[int, ...]:
    """Shape of the activation of one image after a stage."""
    spec = classifier.input_spec
    prefix, _ = classifier.backbone.split(boundary)
    pixels = torch.zeros(1, spec.channels, *spec.size, dtype=torch.uint8, device=next(classifier.parameters()).device)
    with evaluating(classifier):
        return tuple(prefix(classifier.prepare(pixels)).shape[1:])
