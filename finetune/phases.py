"""The phases of a schedule, with every stage name checked against the network."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.errors import ConfigError, did_you_mean
from finetune.plain import Json

HEAD = "head"
# number of stages below the head of a ResNet; layer decay and `last` of every other network are scaled to it
_DEPTH = 5
# names that a schedule may use without knowing the network
ALIASES = ("all", "backbone", "last")


@dataclass(frozen=True, kw_only=True)
class ResolvedPhase:
    """A phase as it will run: a period of training with one fixed set of trainable stages, every setting filled in.

    Its setting is :class:`finetune.config.schema.PhaseConfig`, which Python users know as ``finetune.Phase``.

    Args:
        name: Name of the phase, of its folder and of its rows in the metrics.
        train: Trainable stages in the order of the network.
        stages: All stages of the network in order, ``head`` last.
        epochs: Passes over the training images, at most.
        max_steps: Optimizer steps, at most; None sets no limit besides ``epochs``.
        lr: Peak learning rate of the head; the other stages follow by ``layer_decay``, ``lr_slice`` or ``stage_lr``.
        lr_trials: Rates at which heads are trained side by side on cached features, instead of one head at ``lr``.
        layer_decay: ``lr(stage) = lr * layer_decay ** (distance from the head)``, where the first stage of every network is
            five away, as a ResNet's is.
        lr_slice: Rates of the deepest and the last trainable stage; the rates between are spaced evenly by ratio
            (fastai's ``slice(lo, hi)``).
        stage_lr: Rates of single stages, which override the rules above.
        lr_schedule: ``cosine``, ``constant``, ``one_cycle`` or ``plateau``.
        warmup_epochs: Epochs of linear warmup from zero.
        weight_decay: Weight decay of the parameters that decay (weights of two or more dimensions).
        batch_norm: ``train`` updates the running statistics of trainable stages, ``eval`` keeps them.
        parameters: ``all`` of a trainable backbone stage, or only its ``norms``, ``bias`` or ``gates``, or low-rank adapters on
            its linear layers (``lora``).
        lora_rank: Rank of the adapters.
        batch_size: Images in one step over all devices.
        augment: Name of the training view.
        optimizer: ``_target_`` node of the optimizer.
        carry_optimizer: Keep the optimizer's moments from the phase before.
        label_smoothing: Share of each target that is spread over all classes, from 0 up to 1.
        mixup: Parameter of the Beta distribution of mixup's weights (Zhang et al. 2018); 0 turns mixup off.
        cutmix: Parameter of the Beta distribution of cutmix's areas (Yun et al. 2019); 0 turns cutmix off.
        ema_decay: Decay of the exponential moving average of the weights, per optimizer step; None does not average.
        gradient_clip: Largest norm of the gradient; None does not clip.
        accumulate: Batches whose gradients are summed into one optimizer step.
        restore: Weights passed on at the end: of the ``best`` epoch by the monitored metric, or those that the phase began with
            where no epoch is better; or of the ``last``.
        patience: Epochs without a better metric after which the phase stops; None never stops early.
        cache: Train on cached activations of the frozen prefix: ``auto``, ``off``, ``features`` (the evaluation view of each
            image), or the number of training views of each image.
        solver: ``gradient`` trains by the optimizer; ``lbfgs`` solves a linear head to convergence on cached features.
            ``auto``, which solves it if the features are cached, stands only until the caches are planned:
            :func:`finetune.activation_cache.policy.with_solvers` replaces it.
    """

    name: str
    train: tuple[str, ...]
    stages: tuple[str, ...]
    epochs: int = 1
    lr: float
    batch_size: int = 32
    augment: str = "none"
    max_steps: int | None = None
    lr_trials: tuple[float, ...] = ()
    layer_decay: float = 1.0
    lr_slice: tuple[float, float] | None = None
    stage_lr: Mapping[str, float] = field(default_factory=dict)
    lr_schedule: str = "cosine"
    warmup_epochs: float = 0.0
    weight_decay: float = 0.01
    batch_norm: str = "eval"
    parameters: str = "all"
    lora_rank: int = 8
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    carry_optimizer: bool = False
    restore: str = "best"
    patience: int | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float | None = None
    gradient_clip: float | None = None
    accumulate: int = 1
    cache: int | str = "auto"
    solver: str = "gradient"

    @property
    def frozen(self) -> tuple[str, ...]:
        """Return the stages that do not train, in order."""
        return tuple(stage for stage in self.stages if stage not in self.train)

    @property
    def solves_head(self) -> bool:
        """Return whether the phase solves its head instead of training it step by step."""
        assert self.solver != "auto", "with_solvers decides it"
        return self.solver == "lbfgs"

    @property
    def needs_features(self) -> bool:
        """Return whether the phase solves its head, or may, or tries several rates: these work only on cached features."""
        return self.solver != "gradient" or bool(self.lr_trials)

    def steps_per_epoch(self, batches: int) -> int:
        """Return the optimizer steps in an epoch of ``batches`` batches."""
        return -(-batches // self.accumulate)

    def total_steps(self, batches: int) -> int:
        """Return the optimizer steps of the whole phase, at most, if an epoch has ``batches`` batches."""
        steps = self.epochs * self.steps_per_epoch(batches)
        return min(steps, self.max_steps or steps)

    def rates(self) -> dict[str, float]:
        """Return the peak learning rate of each trainable stage, in order from the input.

        A decay of 0.5 gives the first stage of every network 1/32 of the head's rate. Counted by stages it would be 1/32 in
        a ResNet, 1/256 in an EfficientNet and 1/8,192 in a ViT of twelve blocks, which then would not learn. BEiT and DINOv2
        likewise choose a decay nearer to 1 for a deeper network.

        >>> resnet = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
        >>> ResolvedPhase(name="p", train=("layer4", "head"), stages=resnet, lr=0.1, layer_decay=0.5).rates()
        {'layer4': 0.05, 'head': 0.1}
        >>> vit = ("stem", *(f"blocks.{number}" for number in range(12)), "head")
        >>> 1 / ResolvedPhase(name="p", train=vit, stages=vit, lr=1.0, layer_decay=0.5).rates()["stem"]
        32.0
        """
        if self.lr_slice is not None:
            low, high = self.lr_slice
            gaps = max(len(self.train) - 1, 1)
            rates = {stage: low * (high / low) ** (i / gaps) for i, stage in enumerate(self.train)}
            rates[self.train[-1]] = high
        else:
            last = len(self.stages) - 1
            rates = {
                stage: self.lr * self.layer_decay ** (_DEPTH * (last - self.stages.index(stage)) / last)
                for stage in self.train
            }
        return {stage: self.stage_lr.get(stage, rate) for stage, rate in rates.items()}

    def to_plain(self) -> dict[str, Json]:
        """Return plain JSON values, for ``plan.json``."""
        plain = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def expand_stages(
    names: Sequence[str], stages: Sequence[str], *, where: str, network: str
) -> tuple[list[str], list[str]]:
    """Resolve ``all``, ``backbone`` and ``last``, and collect the names that are not a stage.

    Returns:
        The named stages in the network's order, and the problems as messages.

    >>> expand_stages(["last", "head"], ["stem", "layer4", "head"], where="train", network="resnet18")
    (['layer4', 'head'], [])
    >>> vit = ["stem", *(f"blocks.{number}" for number in range(12)), "head"]
    >>> expand_stages(["last"], vit, where="train", network="vit_small_patch16_224")
    (['blocks.9', 'blocks.10', 'blocks.11'], [])
    """
    backbone = [stage for stage in stages if stage != HEAD]
    # the last fifth of the depth: layer4 of a ResNet, three of the twelve blocks of a ViT
    last = backbone[-max(1, round(len(backbone) / _DEPTH)) :]
    aliases = {"all": list(stages), "backbone": backbone, "last": last}
    named: set[str] = set()
    problems = []
    for position, name in enumerate(names):
        if name in stages:
            named.add(name)
        elif name in aliases:
            named.update(aliases[name])
        else:
            problems.append(
                f"{where}[{position}]={name!r}: not a stage of {network!r}. Stages: {', '.join(stages)}."
                f"{did_you_mean(name, stages)}"
            )
    return [stage for stage in stages if stage in named], problems


def build_schedule(
    *,
    phases: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    freeze: Sequence[str],
    stages: Sequence[str],
    network: str,
) -> list[ResolvedPhase]:
    """Resolve a schedule against a network.

    Args:
        phases: Settings of each phase; ``None`` and empty containers take the default.
        defaults: Values of the settings that a phase leaves open.
        freeze: Stages that no phase may train, whatever it names.
        stages: The network's stages in order, ``head`` last.
        network: Name of the network, for messages.

    Raises:
        ConfigError: A stage is unknown, or ``freeze`` leaves a phase nothing to train; all such problems together.
    """
    pinned, problems = expand_stages(freeze, stages, where="freeze", network=network)
    known = {field.name for field in dataclasses.fields(ResolvedPhase)}
    resolved = []
    for position, settings in enumerate(phases):
        where = f"schedule.phases[{position}]"
        given = {**defaults, **{key: value for key, value in settings.items() if value not in (None, {}, [])}}
        named, wrong = expand_stages(given["train"], stages, where=f"{where}.train", network=network)
        problems += wrong
        train = tuple(stage for stage in named if stage not in pinned)
        if named and not train:
            problems.append(
                f"{where}.train={list(given['train'])}: nothing is left to train. freeze={list(freeze)} freezes all of it. "
                "Take a stage out of freeze, or name another one here."
            )
        problems += [
            f"{where}.stage_lr.{stage}: this phase does not train that stage. It trains {', '.join(train)}."
            f"{did_you_mean(stage, train)}"
            for stage in given.get("stage_lr") or {}
            if stage not in train and not wrong
        ]
        fields = {key: value for key, value in given.items() if key in known and value is not None}
        for key in ("lr_slice", "lr_trials"):
            if fields.get(key):
                fields[key] = tuple(fields[key])
        fields |= {"train": train, "stages": tuple(stages)}
        if train:
            resolved.append(ResolvedPhase(**fields))
    if problems:
        raise ConfigError(problems)
    return resolved
