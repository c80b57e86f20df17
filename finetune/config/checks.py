"""Checks of a configuration that need neither the data nor the network."""

from collections.abc import Sequence
from dataclasses import fields

from finetune.augment_settings import augment_settings
from finetune.config.schema import Config, PhaseSettings
from finetune.data.sources import SOURCES
from finetune.errors import ConfigError, UserError, did_you_mean, shortened
from finetune.models.adaptations import ADAPTATIONS
from finetune.split_settings import SplitSettings
from finetune.training.loss_kinds import LOSSES
from finetune.training.lr_schedules import LR_SCHEDULES

BATCH_NORM_MODES = ("train", "eval")
PARAMETER_KINDS = ("all", "norms", "gates")
SOLVERS = ("gradient", "lbfgs")
CLASS_WEIGHTS = ("none", "balanced")


def _choice(problems: list[str], key: str, value: str | None, valid: Sequence[str]) -> None:
    if value is not None and value not in valid:
        problems.append(f"{key}={value!r}: not known. Choices: {', '.join(valid)}.{did_you_mean(value, valid)}")


def _check_settings(problems: list[str], prefix: str, at: PhaseSettings) -> None:
    def positive(key: str, value: float | None) -> None:
        if value is not None and not value > 0:
            problems.append(f"{prefix}.{key}={value}: must be above 0.")

    def within(key: str, value: float | None, low: float, high: float) -> None:
        if value is not None and not low <= value <= high:
            problems.append(f"{prefix}.{key}={value}: must lie between {low:g} and {high:g}.")

    for key in ("epochs", "max_steps", "lr", "layer_decay", "batch_size", "gradient_clip", "accumulate", "patience"):
        positive(key, getattr(at, key))
    for key in ("warmup_epochs", "weight_decay", "mixup", "cutmix"):
        within(key, getattr(at, key), 0, float("inf"))
    within("label_smoothing", at.label_smoothing, 0, 1)
    if at.ema_decay is not None and not 0 < at.ema_decay < 1:
        problems.append(f"{prefix}.ema_decay={at.ema_decay}: must lie strictly between 0 and 1.")
    if at.lr_slice is not None and (len(at.lr_slice) != 2 or min(at.lr_slice) <= 0):
        problems.append(f"{prefix}.lr_slice={at.lr_slice}: must be two positive rates, deepest stage first.")
    if at.lr_trials and (min(at.lr_trials) <= 0 or len(set(at.lr_trials)) != len(at.lr_trials)):
        problems.append(f"{prefix}.lr_trials={at.lr_trials}: must be positive rates, each of them once.")
    if at.lr_trials and (at.lr_slice is not None or at.stage_lr):
        problems.append(f"{prefix}.lr_trials with lr_slice or stage_lr: only one of them can set the rates.")
    for stage, rate in at.stage_lr.items():
        if rate < 0:
            problems.append(f"{prefix}.stage_lr.{stage}={rate}: must not be negative.")
    if at.lr_slice is not None and at.stage_lr:
        problems.append(f"{prefix}.lr_slice and {prefix}.stage_lr: only one of them can set the rates.")
    _choice(problems, f"{prefix}.lr_schedule", at.lr_schedule, list(LR_SCHEDULES))
    _choice(problems, f"{prefix}.batch_norm", at.batch_norm, BATCH_NORM_MODES)
    _choice(problems, f"{prefix}.parameters", at.parameters, PARAMETER_KINDS)
    _choice(problems, f"{prefix}.restore", at.restore, ("best", "last"))
    _choice(problems, f"{prefix}.solver", at.solver, SOLVERS)
    # YAML reads the bare words on and off as true and false
    if not (
        at.cache in (None, "auto", "off", "features")
        or (isinstance(at.cache, int) and (at.cache >= 1 or at.cache is False))
    ):
        problems.append(f"{prefix}.cache={at.cache!r}: must be auto, off, features, or a number of views from 1 up.")


def _optimizers(config: Config) -> list[str]:
    """Settings of an optimizer that the phases set, and that would have no effect in its node."""
    places = {"optimizer": config.optimizer, "schedule.optimizer": config.schedule.optimizer}
    places |= {
        f"schedule.phases.{number}.optimizer": phase.optimizer for number, phase in enumerate(config.schedule.phases)
    }
    return [
        f"{place}.{key}: has no effect. The phases set it: schedule.{key}, schedule.phases.N.{key}."
        for place, node in places.items()
        for key in ("lr", "weight_decay")
        if key in node
    ]


def _own_modules(config: Config) -> list[str]:
    """Settings that contradict a network, a head or a loss of the user's, or that need one."""
    backbone, head, loss, schedule = config.backbone, config.head, config.loss, config.schedule
    problems = []
    if backbone._target_ is not None and not backbone.stages:
        problems.append(
            "backbone.stages: must be given for backbone._target_. Write 'backbone.stages={stem: [conv1], layer1: [layer1]}', "
            "the child modules of each stage in order from the input."
        )
    if backbone._target_ is None and backbone.stages:
        problems.append("backbone.stages: only for backbone._target_. The library of a network says its stages.")
    for name, section in (("head", head), ("loss", loss)):
        if section._target_ is None and section.kwargs:
            problems.append(f"{name}.kwargs={section.kwargs}: only for {name}._target_, a class of your own.")
    if head._target_ is not None and head.drop_rate:
        problems.append(f"head.drop_rate={head.drop_rate}: not for head._target_. Give it to the class: head.kwargs.")
    if loss._target_ is not None and loss.class_weights != "none":
        problems.append(
            f"loss.class_weights={loss.class_weights!r}: not for loss._target_. Give it to the class: loss.kwargs."
        )
    smoothed = [f"schedule.phases[{n}]" for n, phase in enumerate(schedule.phases) if phase.label_smoothing]
    if loss._target_ is not None and (smoothed or schedule.label_smoothing):
        where = smoothed[0] if smoothed else "schedule"
        problems.append(f"{where}.label_smoothing: not for loss._target_. Give it to the class: loss.kwargs.")
    transform = config.data.transform
    if transform and not isinstance(transform.get("_target_"), str):
        problems.append("data.transform: must have a _target_. Write data.transform._target_=my.module.Transform.")
    if transform and config.data.augment == "none":
        problems.append(
            "data.transform: follows data.augment, and data.augment=none has no training view. Choose light."
        )
    return problems


def _augments(config: Config) -> list[str]:
    """Settings of training views that name none."""
    places = {"data.augment": config.data.augment, "schedule.augment": config.schedule.augment}
    places |= {f"schedule.phases[{n}].augment": phase.augment for n, phase in enumerate(config.schedule.phases)}
    problems = []
    for setting, value in places.items():
        try:
            augment_settings("none" if value is None else value, setting=setting)
        except UserError as error:
            problems.append(str(error))
    return problems


def split_settings(config: Config) -> SplitSettings:
    """Return the settings of the splits, which stand under ``data`` beside the run's seed.

    Raises:
        ConfigError: Values are out of range.
    """
    keys = [field.name for field in fields(SplitSettings) if field.name != "seed"]
    return SplitSettings(seed=config.seed, **{key: getattr(config.data, key) for key in keys})


def check(config: Config) -> None:
    """Check values and their combinations, as far as this needs neither the data nor the network.

    Raises:
        ConfigError: All problems found.
    """
    problems: list[str] = []
    for key, value in (("epochs", config.epochs), ("lr", config.lr)):
        if value is not None and not value > 0:
            problems.append(f"{key}={value}: must be above 0.")
    _check_settings(problems, "schedule", config.schedule)
    if not config.schedule.phases:
        problems.append("schedule.phases=[]: a schedule needs at least one phase.")
    for position, phase in enumerate(config.schedule.phases):
        prefix = f"schedule.phases[{position}]"
        _check_settings(problems, prefix, phase)
        if not phase.train:
            problems.append(f"{prefix}.train=[]: a phase must name the stages that it trains.")
    names = [phase.name for phase in config.schedule.phases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problems.append(f"schedule.phases: names must differ. Used twice: {shortened(twice)}.")
    for name in names:
        if not name or any(letter in name for letter in "/\\=") or name.startswith("."):
            problems.append(f"schedule.phases: {name!r} becomes a folder name and cannot contain '/', '\\' or '='.")
    if (kind := SOURCES.get(config.data.source)) is not None:
        problems += [
            f"data.{key}: must be given. Write data.{key}={what}."
            for key, what in kind.needs.items()
            if not getattr(config.data, key)
        ]
    _choice(problems, "input.adapt", config.input.adapt, list(ADAPTATIONS))
    adaptation = ADAPTATIONS.get(config.input.adapt)
    if adaptation is not None and adaptation.needs_channels and config.input.channels is None:
        problems.append(
            f"input.channels: must be given for input.adapt={config.input.adapt}. Write input.channels=N, those of the images."
        )
    # YAML reads the bare words on and off as true and false
    compiled = {True: "on", False: "off"}.get(config.compile, str(config.compile))
    _choice(problems, "compile", compiled, ("auto", "off", "on"))
    if config.loss._target_ is None:
        _choice(problems, "loss.name", config.loss.name, list(LOSSES))
    _choice(problems, "loss.class_weights", config.loss.class_weights, CLASS_WEIGHTS)
    problems += _own_modules(config) + _optimizers(config) + _augments(config)
    for key in ("batch_size", "eval_batch_size", "classes", "images_per_class", "image_size"):
        value = getattr(config.data, key)
        if value is not None and value < 1:
            problems.append(f"data.{key}={value}: must be at least 1.")
    if config.data.num_workers is not None and config.data.num_workers < 0:
        problems.append(f"data.num_workers={config.data.num_workers}: must not be negative.")
    try:
        split_settings(config)
    except ConfigError as error:
        problems.extend(error.problems)
    if not 0 <= config.head.drop_rate < 1:
        problems.append(f"head.drop_rate={config.head.drop_rate}: must be at least 0 and below 1.")
    if not config.cache.max_gb > 0:
        problems.append(f"cache.max_gb={config.cache.max_gb}: must be above 0. schedule.cache=off turns the cache off.")
    if config.checkpoint.every_n_steps is not None and config.checkpoint.every_n_steps < 1:
        problems.append(f"checkpoint.every_n_steps={config.checkpoint.every_n_steps}: must be at least 1.")
    if problems:
        raise ConfigError(problems)
