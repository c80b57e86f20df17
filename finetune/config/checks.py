"""Checks of a configuration that need neither the data nor the network."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from finetune.augment_settings import augment_settings
from finetune.config.schema import Config, PhaseSettings, setting_of
from finetune.data.sources import DATA_SOURCES
from finetune.errors import ConfigError, UserError, did_you_mean, shortened
from finetune.models.adaptations import ADAPTATIONS
from finetune.models.pools import POOLS
from finetune.split_settings import SplitSettings
from finetune.training.loss_kinds import LOSSES
from finetune.training.lr_schedules import LR_SCHEDULES


def _choice(problems: list[str], key: str, value: str | None, valid: Sequence[str]) -> None:
    if value is not None and value not in valid:
        problems.append(f"{key}={value!r}: not known. Choices: {', '.join(valid)}.{did_you_mean(value, valid)}")


# checked by SplitSettings, for configuration and sources alike
_OF_SPLITS = {field.name for field in fields(SplitSettings)}


def _check_fields(problems: list[str], prefix: str, section: Any) -> None:
    """Check the values of a section against what the schema allows."""
    for key in fields(section):
        known, value, path = setting_of(key), getattr(section, key.name), f"{prefix}{key.name}"
        if prefix == "data." and key.name in _OF_SPLITS:
            continue
        if path == "monitor" and str(value).removeprefix("val/") in section.metrics:
            continue  # a user-supplied metric
        if is_dataclass(value):
            _check_fields(problems, f"{path}.", value)
        elif known.choices:
            _choice(problems, path, value, known.choices)
        elif known.limits() and isinstance(value, int | float) and not known.allows(value):
            limits = known.limits()
            verb = "lie" if "between" in limits else "be"
            problems.append(f"{path}={value}: must {verb} {limits}.")


def _check_rates(problems: list[str], prefix: str, at: PhaseSettings) -> None:
    """Check the combinations of the settings of a phase."""
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
    # YAML reads the bare words on and off as true and false
    if not (
        at.cache in (None, "auto", "off", "features")
        or (isinstance(at.cache, int) and (at.cache >= 1 or at.cache is False))
    ):
        problems.append(f"{prefix}.cache={at.cache!r}: must be auto, off, features, or a number of views from 1 up.")


def _optimizers(config: Config) -> list[str]:
    """Return the optimizer settings that have no effect because the phases set them."""
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
    """Return contradictions around user-supplied networks, heads, losses and transforms."""
    backbone, head, loss, schedule = config.backbone, config.head, config.loss, config.schedule
    problems = []
    if backbone._target_ is not None and not backbone.stages:
        problems.append(
            "backbone.stages: must be given for backbone._target_. Set 'backbone.stages={stem: [conv1], layer1: [layer1]}', "
            "the child modules of each stage in order from the input."
        )
    if backbone._target_ is None and backbone.stages:
        problems.append("backbone.stages: only for backbone._target_. The library of a network defines its stages.")
    if backbone.pool is not None and backbone.source != "timm":
        problems.append(
            f"backbone.pool={backbone.pool!r}: chosen for networks of timm only (backbone.source=timm). Leave it out."
        )
    _choice(problems, "backbone.pool", backbone.pool, POOLS)
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
        problems.append("data.transform: must have a _target_. Set data.transform._target_=my.module.Transform.")
    views = [phase.augment or schedule.augment or config.data.augment for phase in schedule.phases]
    if transform and all(view == "none" for view in views or [config.data.augment]):
        problems.append(
            "data.transform: follows the augmentation, and with augment=none in every phase there is no training view. "
            "Choose light."
        )
    return problems


def _augments(config: Config) -> list[str]:
    """Return invalid values of ``augment``."""
    places = {"data.augment": config.data.augment, "schedule.augment": config.schedule.augment}
    places |= {f"schedule.phases[{n}].augment": phase.augment for n, phase in enumerate(config.schedule.phases)}
    problems = []
    for setting, value in places.items():
        try:
            augment_settings("none" if value is None else value, setting=setting)
        except UserError as error:
            problems.append(str(error))
    return problems


def _channels(value: object) -> list[str]:
    """Return the problem with ``input.channels``; none if it is sound."""
    if value in (None, "auto") or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return []
    return [f"input.channels={value!r}: must be auto or a whole number, at least 1."]


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
    _check_fields(problems, "", config)
    _check_rates(problems, "schedule", config.schedule)
    if not config.schedule.phases:
        problems.append("schedule.phases=[]: a schedule needs at least one phase.")
    for position, phase in enumerate(config.schedule.phases):
        prefix = f"schedule.phases[{position}]"
        _check_fields(problems, f"{prefix}.", phase)
        _check_rates(problems, prefix, phase)
        if not phase.train:
            problems.append(f"{prefix}.train=[]: a phase must name the stages that it trains.")
    names = [phase.name for phase in config.schedule.phases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problems.append(f"schedule.phases: names must differ. Used twice: {shortened(twice)}.")
    for name in names:
        if not name or any(letter in name for letter in "/\\=") or name.startswith("."):
            problems.append(f"schedule.phases: {name!r} becomes a folder name and cannot contain '/', '\\' or '='.")
    if (kind := DATA_SOURCES.get(config.data.source)) is not None:
        problems += [
            f"data.{key}: must be given. Set data.{key}={what}."
            for key, what in kind.needs.items()
            if not getattr(config.data, key)
        ]
    problems += _channels(config.input.channels)
    _choice(problems, "input.adapt", config.input.adapt, list(ADAPTATIONS))
    adaptation = ADAPTATIONS.get(config.input.adapt)
    if adaptation is not None and adaptation.needs_channels and config.input.given_channels is None:
        problems.append(
            f"input.channels: must be given for input.adapt={config.input.adapt}. Set input.channels=N, those of the images."
        )
    # YAML reads the bare words on and off as true and false
    compiled = {True: "on", False: "off"}.get(config.compile, str(config.compile))
    _choice(problems, "compile", compiled, ("auto", "off", "on"))
    if config.loss._target_ is None:
        _choice(problems, "loss.name", config.loss.name, list(LOSSES))
    problems += _own_modules(config) + _optimizers(config) + _augments(config)
    try:
        split_settings(config)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
