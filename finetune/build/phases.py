"""Build the phases of a schedule from the configuration, and check every name against the network."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from finetune.augment_settings import augment_settings
from finetune.build.python_objects import PythonObjects
from finetune.config.schema import Config
from finetune.config.trust import DEFAULT_OPTIMIZER
from finetune.errors import ConfigError
from finetune.models.adaptations import ADAPTATIONS

if TYPE_CHECKING:
    from finetune.phases import ResolvedPhase


def build_phases(
    config: Config, *, stages: Sequence[str], network: str, objects: PythonObjects = PythonObjects()
) -> "list[ResolvedPhase]":
    """Resolve the schedule of a configuration against the network.

    Args:
        config: Checked configuration.
        stages: Stages of the network, from the input.
        network: Name of the network, for messages.
        objects: Objects from Python; a head or a loss among them is trained step by step.

    Raises:
        ConfigError: Stages are unknown, nothing is left to train, or a new stem would never train.
    """
    from finetune.phases import build_schedule

    shared = {key: value for key, value in asdict(config.schedule).items() if key != "phases"}
    defaults = shared | {"batch_size": shared["batch_size"] or config.data.batch_size}
    defaults |= {
        "augment": shared["augment"] or config.data.augment,
        "optimizer": shared["optimizer"] or config.optimizer,
    }
    phases = build_schedule(
        phases=[_with_plain_words(asdict(phase)) for phase in config.schedule.phases],
        defaults=_with_plain_words(defaults),
        freeze=config.freeze,
        stages=stages,
        network=network,
    )
    phases = [
        replace(phase, solver="gradient")
        if phase.solver == "auto" and _descends(config, objects, phases, position)
        else phase
        for position, phase in enumerate(phases)
    ]
    problems = []
    for position, phase in enumerate(phases):
        if ADAPTATIONS[config.input.adapt].is_new and stages[0] in phase.frozen:
            problems.append(
                f"input.adapt={config.input.adapt!r}: starts a new {stages[0]}, which "
                f"schedule.phases[{position}] ({phase.name}) keeps "
                f"frozen at random weights. Train {stages[0]} in every phase (schedule=full), or use input.adapt=expand."
            )
        before = phases[position - 1] if position > 0 else None
        if phase.carry_optimizer and before is not None and before.needs_features:
            how = "solves the head and" if before.solver == "lbfgs" else "tries several rates and"
            problems.append(
                f"schedule.phases[{position}].carry_optimizer=True: the phase before {how} has no moments to carry. "
                "Leave it out."
            )
        if phase.carry_optimizer and before is not None and "lora" in (before.parameters, phase.parameters):
            problems.append(
                f"schedule.phases[{position}].carry_optimizer=True: parameters=lora trains different parameters in each "
                "phase, so their moments cannot be carried. Leave it out."
            )
        if phase.carry_optimizer and before is not None and not before.needs_features:
            kinds = [str(one.optimizer.get("_target_", DEFAULT_OPTIMIZER)) for one in (before, phase)]
            if kinds[0] != kinds[1]:
                problems.append(
                    f"schedule.phases[{position}].carry_optimizer=True: the phase before trains by {kinds[0]}, whose moments "
                    f"{kinds[1]} cannot continue with. Give both phases one optimizer, or leave it out."
                )
        if phase.lr_trials:
            problems += _rate_trials(phase, where=f"schedule.phases[{position}].lr_trials={list(phase.lr_trials)}")
        if phase.solver == "lbfgs":
            where = f"schedule.phases[{position}].solver='lbfgs'"
            if not _has_linear_head(config, objects):
                problems.append(f"{where}: solves only linear heads. Choose head=linear, or solver=gradient.")
            if _has_own_loss(config, objects):
                problems.append(f"{where}: needs a built-in convex loss. Leave your own loss out, or solver=gradient.")
            if phase.train != ("head",):
                problems.append(
                    f"{where}: trains the head on fixed features. This phase trains {', '.join(phase.train)}. "
                    "Set train=[head], or solver=gradient."
                )
            if phase.mixup or phase.cutmix:
                problems.append(
                    f"{where}: takes no mixup or cutmix, which mix pixels. Leave them out, or solver=gradient."
                )
    if problems:
        raise ConfigError(problems)
    _check_monitor(config, phases)
    return phases


def _check_monitor(config: Config, phases: "Sequence[ResolvedPhase]") -> None:
    """Check that every phase measures the monitored metric; phases that solve a head or try rates measure only built-in ones."""
    without = [phase.name for phase in phases if phase.needs_features]
    if without and config.monitor.removeprefix("val/") in config.metrics:
        raise ConfigError(
            [
                f"monitor={config.monitor!r}: a metric of your own is not measured in phase {without[0]!r}, which solves "
                "its head or tries several rates. Monitor val/acc or val/loss, or train that phase with solver=gradient and one "
                "lr."
            ]
        )


# a phase that sets one of these is trained step by step
_OF_A_DESCENT = (
    "lr",
    "lr_slice",
    "stage_lr",
    "max_steps",
    "patience",
    "optimizer",
    "weight_decay",
    "gradient_clip",
    "ema_decay",
)


def _descends(config: Config, objects: PythonObjects, phases: "Sequence[ResolvedPhase]", position: int) -> bool:
    """Return whether a phase with ``solver=auto`` must be trained step by step, or whose own settings require it."""
    phase, settings = phases[position], config.schedule.phases[position]
    later = phases[position + 1] if position + 1 < len(phases) else None
    return (
        any(getattr(settings, name) not in (None, {}, []) for name in _OF_A_DESCENT)
        or not _has_linear_head(config, objects)
        or _has_own_loss(config, objects)
        # a solved head does not measure user-supplied metrics
        or config.monitor.removeprefix("val/") in config.metrics
        or phase.train != ("head",)
        # a solved head does not start from given weights; one that grows is solved for old and new classes alike, unless
        # finetune grow has set solver=gradient because the data does not show the old ones
        or bool(config.head.weights and config.data.old_classes is None)
        or bool(phase.mixup or phase.cutmix or phase.lr_trials)
        or (later is not None and later.carry_optimizer)
    )


def _has_linear_head(config: Config, objects: PythonObjects) -> bool:
    from finetune.models.heads import HEADS

    head = HEADS.get(config.head.name)
    return head is not None and head.is_linear and config.head._target_ is None and objects.head is None


def _has_own_loss(config: Config, objects: PythonObjects) -> bool:
    return config.loss._target_ is not None or objects.loss is not None


def _rate_trials(phase: "ResolvedPhase", *, where: str) -> list[str]:
    """Return the problems that prevent training several heads side by side in a phase."""
    problems = []
    if phase.train != ("head",):
        problems.append(
            f"{where}: tries rates for the head on fixed features. This phase trains {', '.join(phase.train)}. "
            "Set train=[head], or one lr."
        )
    if phase.solver != "gradient":
        problems.append(f"{where}: solver={phase.solver!r} takes no rate. Leave one of them out.")
    others = {
        "mixup": phase.mixup,
        "cutmix": phase.cutmix,
        "ema_decay": phase.ema_decay,
        "accumulate": phase.accumulate > 1,
    }
    if taken := [name for name, value in others.items() if value]:
        problems.append(f"{where}: cannot be combined with {', '.join(taken)}. Leave that out, or write one lr.")
    return problems


def _with_plain_words(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with ``cache`` as a word, which YAML may have read as a boolean, and ``augment`` as one line of text."""
    words = {True: "auto", False: "off"}
    plain = {
        key: words[value] if key == "cache" and isinstance(value, bool) else value for key, value in settings.items()
    }
    return plain | {"augment": plain["augment"] and augment_settings(plain["augment"]).text}
