"""Cache policy: whether a phase trains on cached activations, of which views, and why. It is decided before any computation.

``schedule.cache`` names the choice:

- ``off``: train on images, with a new view of each image in every epoch.
- ``features``: cache the evaluation view of each image once and train on it, without augmentation.
- a number ``N``: cache ``N`` training views of each image; every epoch draws one of them.
- ``auto``: ``features`` for a head on pooled features; for cached maps, as many views as the square root of the epochs.

For a head, ``features`` is the default because on real pictures it is about as good as augmented views and costs one pass. Test
accuracy in % and test loss of a frozen ``tf_efficientnet_lite0`` with its ImageNet weights (128 px, five epochs, augmentation
``standard``, mean of three seeds; the standard error of one accuracy is 2.5, 1.8 and 1.8 points by the number of test images):

| pictures (test images) | features | off | shifted |
|---|---|---|---|
| photographs in 8 classes (259) | 78.6, 0.723 | 79.3, 0.736 | 74.3, 0.845 |
| solar cells in 4 classes (400) | 83.4, 0.454 | 79.5, 0.529 | 79.3, 0.515 |
| drawings in 8 classes (748) | 60.6, 1.106 | 61.1, 1.147 | 59.6, 1.166 |

*Shifted* is the former ``auto``: the evaluation view plus the change that augmentation makes to the features of 256 other images.

    uv run python tests/benchmarks/cache_modes.py FOLDER... --weights lite0.safetensors
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from finetune.activation_cache.solver_memory import SolverMemory, solver_bytes
from finetune.activation_cache.store import free_bytes, why_unusable
from finetune.counted import counted
from finetune.data.index import Index
from finetune.errors import UserError
from finetune.models.classifier import Classifier
from finetune.models.modes import evaluating
from finetune.phases import HEAD, ResolvedPhase
from finetune.plain import Json

# fraction of the free disk space that one phase may take
_SHARE_OF_FREE = 0.5
# fraction of the memory that solving a head may take: the rest is for the network, and on a GPU for the activations
_SHARE_OF_MEMORY = 0.7

CachedView = Literal["", "evaluation", "training"]
Autocast = Callable[[torch.device], torch.autocast]


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """The kind of batches that one phase trains on: images, or cached activations of certain views.

    Args:
        cached_stage: Frozen stage whose output is cached; None trains on images.
        cached_view: View of each image that is cached: ``evaluation``, ``training`` (augmented), or empty without a cache. If
            ``features`` was requested and nothing can be cached, ``evaluation`` names the view that the phase trains on.
        views: Number of training views per image that the epochs draw from; None without a cache means a new view in every
            epoch, and None with a cache means the evaluation view.
        bytes: Estimated size of the cached training and validation activations, in bytes.
        why: Reason, for the plan.
        head_fits: Whether the memory holds what solving a head on the cached activations takes; with ``solver=auto`` a head that
            does not fit is trained step by step. It is recorded, because a run may be resumed on another machine.
    """

    cached_stage: str | None
    cached_view: CachedView = ""
    views: int | None
    bytes: int
    why: str
    head_fits: bool = True

    def augment(self, phase: ResolvedPhase) -> str:
        """Return the augmentation of the training images of a phase that trains without a cache."""
        return "none" if self.cached_view == "evaluation" else phase.augment

    def to_plain(self) -> dict[str, Json]:
        """Return plain JSON values, for ``plan.json``."""
        return asdict(self)


def with_solvers(phases: Sequence[ResolvedPhase], policies: Sequence[CachePolicy]) -> list[ResolvedPhase]:
    """Return the phases with ``solver='auto'`` decided: on cached features the head is solved if that fits the memory.

    Else it is trained step by step.
    """
    return [
        replace(phase, solver="lbfgs" if policy.cached_stage is not None and policy.head_fits else "gradient")
        if phase.solver == "auto"
        else phase
        for phase, policy in zip(phases, policies, strict=True)
    ]


def policies_from_plain(values: Sequence[object], phases: Sequence[ResolvedPhase]) -> list[CachePolicy]:
    """Return the policies of a run's phases from the plain values in its record.

    Raises:
        ValueError: The values do not fit these phases, or do not have the form that :meth:`CachePolicy.to_plain` returns.
    """
    if len(values) != len(phases):
        raise ValueError(f"There are {len(values)} caches for {len(phases)} phases")
    return [_from_plain(value, phase) for value, phase in zip(values, phases, strict=True)]


def _from_plain(value: object, phase: ResolvedPhase) -> CachePolicy:
    names = {field.name for field in fields(CachePolicy)}
    # runs of earlier versions have not recorded it
    value = {"head_fits": True} | value if isinstance(value, dict) else value
    if not isinstance(value, dict) or set(value) != names:
        raise ValueError(f"The cache of phase {phase.name!r} must have the keys {', '.join(sorted(names))}")
    stage, views = value["cached_stage"], value["views"]
    if not (
        (stage is None or stage in phase.frozen)
        and value["cached_view"] in get_args(CachedView)
        and (views is None or (type(views) is int and views >= 0))
        and type(value["bytes"]) is int
        and isinstance(value["why"], str)
        and isinstance(value["head_fits"], bool)
    ):
        raise ValueError(f"The cache of phase {phase.name!r} holds an invalid value")
    return CachePolicy(**value)


def last_frozen_stage(classifier: Classifier, phase: ResolvedPhase) -> str | None:
    """Return the last stage of the frozen prefix at which the network can be split, or None if there is none.

    With stem and layer1 frozen this is ``layer1``; if the stem trains, None.
    """
    prefix = []
    for stage in classifier.backbone.stages:
        if stage in phase.train:
            break
        prefix.append(stage)
    cuts = [stage for stage in prefix if stage in classifier.backbone.boundaries]
    return cuts[-1] if cuts else None


def pool_size(epochs: int) -> int:
    """Return the number of training views that ``cache: auto`` caches of maps: the rounded square root of the epochs.

    >>> [pool_size(epochs) for epochs in (1, 2, 5, 10, 30, 100)]
    [1, 1, 2, 3, 5, 10]
    """
    return max(1, round(math.sqrt(epochs)))


def plan_caches(
    classifier: Classifier,
    phases: Sequence[ResolvedPhase],
    index: Index,
    *,
    max_gb: float,
    weights_dtype: torch.dtype,
    autocast: Autocast,
    memory: SolverMemory,
) -> list[CachePolicy]:
    """Choose a policy for each phase.

    Args:
        classifier: Model to train.
        phases: Phases of the schedule.
        index: Images of each split.
        max_gb: Limit of the whole cache, in units of 10^9 bytes.
        weights_dtype: Dtype of the weights during training.
        autocast: Function that returns the context of mixed precision on a device.
        memory: Memory in which a head is solved.

    Raises:
        UserError: A phase has ``solver=lbfgs``, and solving its head takes too much memory.
    """
    images = {split: len(index.rows(split)) for split in ("train", "val")}
    policies = [
        _choose(classifier, phase, images, max_gb=max_gb, weights_dtype=weights_dtype, autocast=autocast, memory=memory)
        for phase in phases
    ]
    for number, (phase, policy) in enumerate(zip(phases, policies, strict=True)):
        if phase.solver == "lbfgs" and not policy.head_fits:
            raise UserError(
                f"schedule.phases[{number}].solver='lbfgs': must fit the memory. {policy.why[:1].upper()}{policy.why[1:]}. Set "
                "solver=gradient (or auto, which chooses it), or use a machine with more memory."
            )
    return policies


def _choose(
    classifier: Classifier,
    phase: ResolvedPhase,
    images: dict[str, int],
    *,
    max_gb: float,
    weights_dtype: torch.dtype,
    autocast: Autocast,
    memory: SolverMemory,
) -> CachePolicy:
    asked_views = phase.cache if isinstance(phase.cache, int) else None

    def no_cache(why: str, views: int | None = asked_views) -> CachePolicy:
        view: CachedView = "evaluation" if phase.cache == "features" else ""
        return CachePolicy(cached_stage=None, cached_view=view, views=views, bytes=0, why=why)

    stage = last_frozen_stage(classifier, phase)
    if phase.cache == "off":
        return no_cache("off, as configured")
    if stage is None and classifier.stages[0] in phase.train:
        return no_cache("no stage before the trained ones is frozen")
    if stage is None:
        ends = " or ".join(classifier.backbone.boundaries)
        return no_cache(f"{classifier.backbone.name} can be cut only after {ends}, and not all of that is frozen")
    if phase.mixup or phase.cutmix:
        return no_cache("mixup and cutmix mix pixels, which cached activations no longer have")
    if unusable := why_unusable():
        return no_cache(unusable)
    if phase.cache == "auto" and phase.epochs == 1 and not phase.needs_features:
        return no_cache("one epoch sees each image once")
    activation = _example_activation(classifier, stage, autocast)
    shape = activation.shape[1:]
    views = _training_views(phase, shape)
    # mixed precision gives half or single precision, by the network's last operation; weights of another dtype give theirs
    dtype = activation.dtype if weights_dtype == torch.float32 else weights_dtype
    total = math.prod(shape) * dtype.itemsize * ((views or 1) * images["train"] + images["val"])
    if total > max_gb * 1e9:
        return no_cache(f"{total / 1e9:.1f} GB of activations are more than cache.max_gb={max_gb:g}")
    if total > _SHARE_OF_FREE * free_bytes():
        return no_cache(
            f"{total / 1e9:.1f} GB of activations are more than half of the {free_bytes() / 1e9:.1f} GB free"
        )
    too_large = ""
    if phase.solver != "gradient":
        rows = max((views or 1) * images["train"], images["val"])
        too_large = _too_large(solver_bytes(rows, math.prod(shape), len(classifier.classes)), memory)
    why = f"after {stage}, {_describe(phase, views)}"
    return CachePolicy(
        cached_stage=stage,
        cached_view="evaluation" if views is None else "training",
        views=views,
        bytes=total,
        why=f"{why}; trained step by step, because {too_large}"
        if too_large and phase.solver == "auto"
        else too_large or why,
        head_fits=not too_large,
    )


def _too_large(wanted: int, memory: SolverMemory) -> str:
    """Return the reason why solving a head that takes so many bytes does not fit the memory; empty if it does."""
    if wanted <= _SHARE_OF_MEMORY * memory.bytes:
        return ""
    return (
        f"solving the head takes {wanted / 1e9:.1f} GB of memory, more than {_SHARE_OF_MEMORY:.0%} of the "
        f"{memory.bytes / 1e9:.1f} GB of {memory.where}"
    )


def _training_views(phase: ResolvedPhase, shape: Sequence[int]) -> int | None:
    """Return how many training views of each image to cache; None caches the evaluation view."""
    if phase.augment == "none" or phase.cache == "features":
        return None
    if isinstance(phase.cache, int):
        return min(phase.cache, phase.epochs)
    head_on_features = len(shape) == 1 and phase.train == (HEAD,)
    return None if head_on_features else pool_size(phase.epochs)


def _describe(phase: ResolvedPhase, views: int | None) -> str:
    if phase.augment == "none":
        return "the evaluation view of each image"
    if views is None:
        return f"the evaluation view of each image once, so augment={phase.augment} has no effect"
    if views >= phase.epochs:
        return f"{counted(views, 'view')} of each image, one per epoch"
    return f"{counted(views, 'view')} of each image for {counted(phase.epochs, 'epoch')}"


@torch.no_grad()
def _example_activation(classifier: Classifier, stage: str, autocast: Autocast) -> Tensor:
    """Return the activation of one image after a stage."""
    spec, device = classifier.input_spec, next(classifier.parameters()).device
    prefix, _ = classifier.backbone.split(stage)
    pixels = torch.zeros(1, spec.channels, *spec.size, dtype=torch.uint8, device=device)
    with evaluating(classifier), autocast(device):
        activation: Tensor = prefix(classifier.prepare(pixels))
    return activation
