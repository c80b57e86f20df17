"""Plan a schedule before anything trains: the stages, rates, parameters and steps of each phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.activation_cache.policy import CachePolicy
from finetune.counted import counted, in_bytes
from finetune.data.datamodule import ImageDataModule
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.training.forecast import Forecast
from finetune.training.freezing import trainable_names
from finetune.training.linear_probe import STRENGTHS
from finetune.training.low_rank import low_rank
from finetune.wrapping import wrapped


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """The plan of a phase for one stage of the network.

    Args:
        mode: ``train`` or ``frozen``.
        lr: Peak learning rate; 0 for a frozen stage and for a head that is solved.
        weight_decay: Weight decay of the stage's weights; 0 for a frozen stage and for a head that is solved.
        batch_norm: ``train`` or ``eval``: whether running statistics may move.
        parameters: Number of parameters in the stage.
        trainable: Number of them that train.
    """

    mode: str
    lr: float
    weight_decay: float
    batch_norm: str
    parameters: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """The plan of a phase: an entry of ``plan.json``.

    Args:
        name: Name of the phase.
        train: Stages that will train, from the input to the head.
        frozen: Stages that will stay frozen.
        epochs: Passes over the training images, at most.
        steps: Optimizer steps, at most; 0 for a head that is solved.
        images: Images seen in training, at most.
        trainable: Parameters that will train.
        total: Parameters of the network.
        stages: Plan for each stage of the network, by name.
        cache: Whether the phase will train on cached activations, of how many views, and why.
        settings: Resolved settings of the phase.
        time: Forecast of its time; None if that was not measured.
    """

    name: str
    train: tuple[str, ...]
    frozen: tuple[str, ...]
    epochs: int
    steps: int
    images: int
    trainable: int
    total: int
    stages: Mapping[str, PlannedStage]
    cache: CachePolicy
    settings: ResolvedPhase
    time: Forecast | None = None


def build_plan(
    classifier: Classifier,
    phases: Sequence[ResolvedPhase],
    data: ImageDataModule,
    *,
    cache_policies: Sequence[CachePolicy],
) -> list[PlannedPhase]:
    """Return the plan of each phase; nothing is trained or changed."""
    images = len(data.source.index.rows("train"))
    counts = {name: parameter.numel() for name, parameter in classifier.named_parameters()}
    plan = []
    for phase, cache in zip(phases, cache_policies, strict=True):
        with low_rank(classifier, phase, seed=0, merge=False):
            names = trainable_names(classifier, train=phase.train, parameters=phase.parameters)
            trained = {name: classifier.get_parameter(name).numel() for name in names}
        solved = phase.solves_head
        rates = dict.fromkeys(phase.train, 0.0) if solved else phase.rates()
        steps = phase.total_steps(data.batches_per_epoch(phase.batch_size))
        seen = min(steps * phase.batch_size * phase.accumulate, phase.epochs * images)
        stages = {}
        for stage in classifier.stages:
            trains = stage in phase.train
            stages[stage] = PlannedStage(
                mode="train" if trains else "frozen",
                lr=rates[stage] if trains else 0.0,
                weight_decay=phase.weight_decay if trains and not solved else 0.0,
                batch_norm=phase.batch_norm if trains else "eval",
                parameters=sum(n for name, n in counts.items() if classifier.stage_of(name) == stage),
                trainable=sum(count for name, count in trained.items() if classifier.stage_of(name) == stage),
            )
        plan.append(
            PlannedPhase(
                name=phase.name,
                train=phase.train,
                frozen=phase.frozen,
                epochs=1 if solved else phase.epochs,
                steps=0 if solved else steps,
                images=images * (cache.views or 1) if solved else seen,
                trainable=sum(trained.values()),
                total=sum(counts.values()),
                stages=stages,
                cache=cache,
                settings=phase,
            )
        )
    return plan


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(4.23), duration(48.2), duration(300), duration(9000)
    ('4.2 s', '48 s', '5.0 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_table(plan: Sequence[PlannedPhase]) -> str:
    """Return the plan as text of 80 columns: one block per phase, one line per stage."""
    lines = []
    for number, phase in enumerate(plan):
        settings, cache = phase.settings, phase.cache
        tried = ", ".join(f"{rate:g}" for rate in settings.lr_trials)
        room = f" ({in_bytes(cache.bytes)})" if cache.cached_stage else ""
        lines += [
            f"phase {number + 1} of {len(plan)}: {phase.name} (schedule.phases.{number})",
            *(f"  {line}" for line in _training_in_words(phase)),
            *([f"  heads side by side, at lr {tried}"] if tried else []),
            f"  trains {phase.trainable:,} of {phase.total:,} parameters ({phase.trainable / phase.total:.1%})",
            f"  cache: {'on' if cache.cached_stage else 'none'}, {cache.why}{room}",
            *([_time(phase.time)] if phase.time is not None else []),
            f"  {'stage':12}  {'mode':6}  {'lr':>9}  {'decay':>7}  {'norm':5}  {'trainable':>11}",
        ]
        for name, stage in phase.stages.items():
            trains = stage.mode == "train"
            descends = trains and not settings.solves_head
            rate = f"{stage.lr:.3g}" if descends else "-"
            decay = f"{stage.weight_decay:.3g}" if descends else "-"
            norm = stage.batch_norm if trains else "-"
            trainable = f"{stage.trainable:,}" if trains else "-"
            lines.append(f"  {name:12}  {stage.mode:6}  {rate:>9}  {decay:>7}  {norm:5}  {trainable:>11}")
        lines.append("")
    return wrapped("\n".join(lines))


def repeated_heads(phases: Sequence[ResolvedPhase]) -> list[str]:
    """Return a line where phases train the head alone again after one that solved it; empty where none does."""
    if any(phase.train != ("head",) for phase in phases):
        return []
    first = next((number for number, phase in enumerate(phases) if phase.solves_head), len(phases))
    later = [phase.name for phase in phases[first + 1 :] if not phase.solves_head]
    if not later:
        return []
    return [
        f"schedule: {', '.join(later)} train{'s' * (len(later) == 1)} only the head, which {phases[first].name} has solved; "
        "nothing else is left to train (freeze). schedule=probe solves it and stops."
    ]


def _training_in_words(phase: PlannedPhase) -> tuple[str, str]:
    settings = phase.settings
    if settings.solves_head:
        return (
            f"solves the head on all {phase.images:,} images at once",
            f"validation loss chooses among {len(STRENGTHS)} penalties from {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}",
        )
    return (
        f"{counted(phase.epochs, 'epoch')}, {counted(phase.steps, 'step')}, {counted(phase.images, 'image')}, "
        f"batch {settings.batch_size}",
        f"{settings.lr_schedule}, augment {settings.augment}, restore {settings.restore}",
    )


def _time(time: Forecast) -> str:
    filling = f", of which {duration(time.cache_s)} fill the cache" if round(time.cache_s, 2) else ""
    return f"  time: about {duration(time.seconds)}{filling}"
