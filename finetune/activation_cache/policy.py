"""Whether a phase trains on cached activations, of how many views, and why: decided before anything is computed.

A head that trains on pooled features needs no pool of views. ``auto`` caches the evaluation view of every image, and what
augmentation does to the features of 256 of them; each epoch adds one of these shifts to each image, drawn by a key. That
costs little more than one pass whatever the number of epochs. Test accuracy of a frozen ResNet-18 (embedded weights, 32 px,
``augment: standard``) less that of a run that computes a new view every epoch, paired by seed, with its standard error:

| data | labels a class | epochs | ``auto`` | 1 view | 2 views | 3 or 4 views |
|---|---|---|---|---|---|---|
| digits | 20 | 5 | -0.6 ± 0.4 | -0.3 ± 0.1 | -0.1 ± 0.2 | |
| automata | 20 | 5 | 1.3 ± 1.6 | -4.7 ± 1.5 | 0.4 ± 1.1 | |
| characters | 20 | 5 | 10.8 ± 1.1 | -4.4 ± 0.6 | -2.3 ± 0.6 | |
| solids | 20 | 5 | -2.6 ± 1.8 | -2.6 ± 1.4 | -1.1 ± 0.5 | |
| digits | 20 | 16 | -0.1 ± 0.3 | -0.5 ± 0.3 | 0.7 ± 0.2 | 0.5 ± 0.3 |
| automata | 20 | 16 | 4.2 ± 3.2 | -2.9 ± 1.6 | -0.6 ± 1.0 | 0.0 ± 2.6 |
| characters | 20 | 16 | 6.0 ± 0.4 | -9.8 ± 0.7 | -5.1 ± 0.5 | -4.2 ± 0.7 |
| solids | 20 | 16 | -3.6 ± 2.0 | -6.3 ± 0.5 | -3.1 ± 2.0 | -1.1 ± 0.6 |
| digits | 100 | 5 | 0.0 ± 0.2 | -0.1 ± 0.1 | -0.1 ± 0.1 | 0.0 ± 0.0 |
| automata | 100 | 5 | 3.6 ± 0.8 | -2.3 ± 1.1 | -3.2 ± 1.4 | -0.9 ± 1.0 |
| characters | 100 | 5 | 6.6 ± 0.9 | -3.3 ± 1.2 | -1.1 ± 0.7 | -0.9 ± 0.4 |
| solids | 100 | 5 | -1.3 ± 1.6 | -1.1 ± 0.8 | -0.9 ± 1.5 | -0.7 ± 1.5 |

Five seeds at 5 epochs and 20 labels, three elsewhere. The solids, seen from all sides, are the one set that gains from real
views; where crops and mirror images are unlike the test images, the evaluation view teaches more.

    uv run python tests/benchmarks/view_pool.py --data digits FOLDER... --epochs 5 --per-class 20 --views auto 1 2 5

The folders are sets of tests/benchmarks/transfer_sets.py. Photographs and ImageNet weights have not been measured;
``schedule.cache=N`` caches N views as they are, and as many as there are epochs are a run without a cache.

Where a phase of one epoch stands in front of one that looks at views through a prefix frozen in both, ``auto`` has both look at
the same view of each image, whose activations are cached for both; every epoch still sees a view that no other epoch of its
phase sees.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from finetune.activation_cache.store import free_bytes, why_unusable
from finetune.data.datamodule import ImageDataModule
from finetune.models.classifier import Classifier
from finetune.models.modes import evaluating
from finetune.training.phases import HEAD, Phase

# of the free room on the disk that the cache may take
_SHARE_OF_FREE = 0.5
# images of which ``auto`` caches what augmentation does to their features; 512 and all images were no better than 256
SHIFTS = 256


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """What was decided for one phase.

    Args:
        boundary: The stage whose output is cached; None where the phase trains on images.
        views: Views of each image that the phase draws from; None draws a new one every epoch.
        shifts: Images of which it is cached what augmentation does to their features, to be added to the evaluation view of
            any image; 0 where views are cached as they are.
        views_of: The phase whose views these are; empty where they are its own.
        bytes: Estimate of what it reads: the views of the training images, and the validation images.
        why: In words, for the plan.
    """

    boundary: str | None
    views: int | None
    bytes: int
    why: str
    shifts: int = 0
    views_of: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values, for ``plan.json``."""
        return asdict(self)


def cached_fields(choice: CachePolicy) -> dict[str, Any]:
    """What the results of a phase say of its cache."""
    return {"cached_after": choice.boundary or "", "views": choice.views or 0, "shifts": choice.shifts}


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

    For activations that are maps; a head on pooled features has something better (see above). The prefix then costs
    ``sqrt(epochs)`` passes instead of ``epochs``.

    >>> [pool_size(epochs) for epochs in (1, 2, 5, 10, 30, 100)]
    [1, 1, 2, 3, 5, 10]
    """
    return max(1, round(math.sqrt(epochs)))


def plan_caches(
    classifier: Classifier, phases: Sequence[Phase], data: ImageDataModule, *, max_gb: float, item_bytes: int
) -> list[CachePolicy]:
    """One choice a phase.

    Args:
        classifier: The network.
        phases: The schedule.
        data: For the numbers of images.
        max_gb: Of the whole cache, 10^9 bytes.
        item_bytes: Bytes of one number of an activation: 2 in half precision, else 4.
    """
    images = {split: len(data.source.index.rows(split)) for split in ("train", "val")}
    choices: list[CachePolicy] = []
    lent = [_may_borrow(classifier, *pair) for pair in itertools.pairwise(phases)]
    # from the last to the first, since a phase may train on the views of the next one
    for number in reversed(range(len(phases))):
        if number + 1 < len(phases) and lent[number] and choices[0].boundary is not None:
            choices.insert(0, _borrowed(choices[0], phases[number + 1], images))
            continue
        lends = number > 0 and lent[number - 1]
        found = _choose(classifier, phases[number], images, lends=lends, max_gb=max_gb, item_bytes=item_bytes)
        choices.insert(0, found)
    return choices


def _may_borrow(classifier: Classifier, phase: Phase, following: Phase) -> bool:
    """Whether a phase may train on the first view that the next one caches, or would cache for it.

    A phase of one epoch looks at one view of each image. Where the next phase looks at views of the same kind through a prefix
    that is frozen in both, the one pass over the images serves both: activations are kept where the next phase needs them, and
    the frozen stages behind run on them.
    """
    mine, its = frozen_boundary(classifier, phase), frozen_boundary(classifier, following)
    if mine is None or its is None or phase.epochs != 1:
        return False
    stages = classifier.backbone.stages
    plain = all(
        one.cache == "auto"
        and one.solver == "gradient"
        and not one.lr_trials
        and not one.max_steps
        and not one.mixup
        and not one.cutmix
        for one in (phase, following)
    )
    in_front = stages.index(its) <= stages.index(mine)
    return plain and in_front and phase.augment == following.augment and following.train != (HEAD,)


def _borrowed(later: CachePolicy, following: Phase, images: dict[str, int]) -> CachePolicy:
    """The choice of a phase of one epoch that trains on the first view of the next phase."""
    views = later.views or 1
    row_bytes = later.bytes // (views * images["train"] + images["val"])
    return replace(
        later,
        views=later.views and 1,
        views_of=later.views_of or following.name,
        bytes=row_bytes * (images["train"] + images["val"]),
        why=f"after {later.boundary}, on the view of each image that {following.name} looks at too",
    )


def _choose(
    classifier: Classifier, phase: Phase, images: dict[str, int], *, lends: bool, max_gb: float, item_bytes: int
) -> CachePolicy:
    def no(why: str, views: int | None = None) -> CachePolicy:
        return CachePolicy(boundary=None, views=views, bytes=0, why=why)

    explicit = phase.cache if isinstance(phase.cache, int) else None
    views = _views(phase)
    boundary = frozen_boundary(classifier, phase)
    if phase.cache == "off":
        return no("off, as asked for")
    if boundary is None:
        return no("nothing is frozen in front of what trains", explicit)
    if phase.mixup or phase.cutmix:
        return no("mixup and cutmix mix pixels, which a cached activation has no more", explicit)
    if unusable := why_unusable():
        return no(unusable, explicit)
    once = phase.epochs == 1 and phase.solver == "gradient" and not phase.lr_trials
    if phase.cache == "auto" and once and not lends:
        return no("one epoch looks at each image once")
    shape = activation_shape(classifier, boundary)
    shifts = _shifts(phase, shape, images["train"])
    rows = images["train"] + shifts if shifts else views * images["train"]
    wanted = math.prod(shape) * item_bytes * (rows + images["val"])
    if wanted > max_gb * 1e9:
        return no(f"{wanted / 1e9:.1f} GB of activations are more than cache.max_gb={max_gb:g}", explicit)
    if wanted > _SHARE_OF_FREE * free_bytes():
        return no(
            f"{wanted / 1e9:.1f} GB of activations are more than half of the {free_bytes() / 1e9:.1f} GB that are free",
            explicit,
        )
    return CachePolicy(
        boundary=boundary,
        views=views if phase.augment != "none" and not shifts else None,
        shifts=shifts,
        bytes=wanted,
        why=f"after {boundary}, {_in_words(phase, views, shifts)}",
    )


def _shifts(phase: Phase, shape: Sequence[int], images: int) -> int:
    """Images of which the shift by augmentation is cached; 0 where views are."""
    features_alone = len(shape) == 1 and phase.train == (HEAD,) and phase.solver == "gradient"
    return min(SHIFTS, images) if phase.cache == "auto" and phase.augment != "none" and features_alone else 0


def _views(phase: Phase) -> int:
    """Views of each training image to cache."""
    if phase.augment == "none":
        return 1
    if isinstance(phase.cache, int):
        return min(phase.cache, phase.epochs)
    return pool_size(phase.epochs)


def _in_words(phase: Phase, views: int, shifts: int) -> str:
    if phase.augment == "none":
        return "the one view of each image"
    if shifts:
        return (
            f"the evaluation view of each image, shifted by what augmentation does to the features of {shifts} of them"
        )
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
