"""The configuration: its schema, where ``conf/`` is found, and what is checked before anything heavy is imported.

This module and the commands are the only ones that know Hydra and OmegaConf. It imports no torch, so a mistyped key is
answered in well under a second.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from finetune.errors import ConfigError, UserError, did_you_mean, shortened

# OmegaConf reads `Optional[...]`, not `X | None`, in every version that hydra-core 1.3 allows.
# ruff: noqa: UP045


@dataclass
class DataConfig:
    """Where the images come from and how they are handed over (``conf/data/``)."""

    source: str = "folder"
    # a folder, or a list of folders that are one data set
    root: Any = None
    # of a table (data=manifest) or a data set on disk (data=huggingface)
    path: Optional[str] = None
    # of a torchvision data set (data=torchvision)
    name: Optional[str] = None
    # columns of a table; several labels stand in one column with a separator, or in one column of 0 and 1 a class
    path_column: str = "path"
    image_column: str = "image"
    label_column: str = "label"
    split_column: str = "split"
    label_separator: Optional[str] = None
    label_columns: Optional[list[str]] = None
    # splits that the data does not name are made: stratified, by content, from the run's seed
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    folds: Optional[int] = None
    fold: int = 0
    limit_per_class: Optional[int] = None
    # error | skip
    on_unreadable: str = "error"
    # null: as many as Pillow allows, 178,956,970
    max_pixels: Optional[int] = None
    # how more than 8 bits become 8: full | stretch
    high_depth: str = "full"
    # draw training images so that every class is seen equally often
    balanced: bool = False
    # images in one optimizer step, over all devices together: results do not depend on the number of devices
    batch_size: int = 32
    eval_batch_size: int = 64
    # null: none for data that is in memory, else one less than the cores of this process
    num_workers: Optional[int] = None
    augment: str = "standard"
    # of formula images (data=fractals) alone; null takes the source's default
    recipe: Optional[str] = None
    classes: Optional[int] = None
    images_per_class: Optional[int] = None
    image_size: Optional[int] = None


@dataclass
class InputConfig:
    """What the network is fed; null takes what the data or the pretrained weights say."""

    channels: Optional[int] = None
    adapt: str = "expand"
    size: Any = None
    mean: Optional[list[float]] = None
    std: Optional[list[float]] = None
    interpolation: Optional[str] = None
    crop_pct: Optional[float] = None
    crop_mode: Optional[str] = None


@dataclass
class BackboneConfig:
    """The pretrained network (``conf/backbone/``)."""

    source: str = "timm"
    name: str = "resnet18"
    weights: str = "imagenet"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class HeadConfig:
    """The classifier on top (``conf/head/``)."""

    name: str = "linear"
    drop_rate: float = 0.0
    hidden: int = 512
    weights: Optional[str] = None


@dataclass
class PhaseSettings:
    """What may be set for one phase, or for all of them under ``schedule.``; null inherits."""

    epochs: Optional[int] = None
    max_steps: Optional[int] = None
    lr: Optional[float] = None
    layer_decay: Optional[float] = None
    lr_slice: Optional[list[float]] = None
    stage_lr: dict[str, float] = field(default_factory=dict)
    lr_schedule: Optional[str] = None
    warmup_epochs: Optional[float] = None
    weight_decay: Optional[float] = None
    batch_norm: Optional[str] = None
    parameters: Optional[str] = None
    batch_size: Optional[int] = None
    augment: Optional[str] = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    carry_optimizer: Optional[bool] = None
    restore: Optional[str] = None
    patience: Optional[int] = None
    label_smoothing: Optional[float] = None
    mixup: Optional[float] = None
    cutmix: Optional[float] = None
    ema_decay: Optional[float] = None
    gradient_clip: Optional[float] = None
    accumulate: Optional[int] = None


@dataclass
class PhaseConfig(PhaseSettings):
    """One phase: which stages train; every setting that is null is taken from ``schedule``."""

    name: str = "phase"
    train: list[str] = field(default_factory=list)


@dataclass
class ScheduleConfig(PhaseSettings):
    """The ordered phases and the settings that they share (``conf/schedule/``)."""

    name: str = "custom"
    phases: list[PhaseConfig] = field(default_factory=list)
    epochs: Optional[int] = 5
    lr: Optional[float] = 1e-3
    layer_decay: Optional[float] = 1.0
    lr_schedule: Optional[str] = "cosine"
    warmup_epochs: Optional[float] = 0.0
    weight_decay: Optional[float] = 0.01
    batch_norm: Optional[str] = "eval"
    parameters: Optional[str] = "all"
    carry_optimizer: Optional[bool] = False
    restore: Optional[str] = "best"
    label_smoothing: Optional[float] = 0.0
    mixup: Optional[float] = 0.0
    cutmix: Optional[float] = 0.0
    accumulate: Optional[int] = 1


@dataclass
class LossConfig:
    """The training loss."""

    name: str = "cross_entropy"
    focal_gamma: float = 2.0
    class_weights: str = "none"


@dataclass
class CheckpointConfig:
    """When training state is written besides the end of every epoch."""

    every_n_steps: Optional[int] = None


@dataclass
class Config:
    """The whole configuration of a run."""

    seed: int = 0
    name: Optional[str] = None
    run_dir: Optional[str] = None
    monitor: str = "val/acc"
    freeze: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # nodes for classes of other libraries: `_target_` and whatever arguments those take
    optimizer: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)


# stands for the run folder in nodes of other libraries until the folder is known; a run folder may also be moved
RUN_DIR = "<run_dir>"


def conf_dir() -> Path:
    """The folder of packaged configurations: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def group_choices(extra_dirs: Sequence[Path] = ()) -> dict[str, list[str]]:
    """Config groups and their choices, packaged and the user's own, sorted.

    >>> group_choices()["head"]
    ['cosine', 'linear', 'mlp']
    """
    choices: dict[str, set[str]] = {}
    for folder in (conf_dir(), *extra_dirs):
        for path in folder.glob("*/*.yaml"):
            if path.parent.name != "hydra":
                choices.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(choices.items())}


def _plain(annotation: Any) -> Any:
    """``Optional[X]`` without its None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation


def find_key(path: str) -> tuple[str | None, bool]:
    """Look a dotted path up in the schema.

    Returns:
        Why it is not a key, or None where it is one; and whether it lies in a part of free form, such as ``trainer``.

    >>> find_key("schedule.phases.1.train")
    (None, False)
    >>> find_key("trainer.max_time")
    (None, True)
    >>> find_key("backbone.wieghts")[0]
    "no such key. Keys of backbone: source, name, weights, kwargs. Did you mean 'backbone.weights'?"
    """
    at: Any = Config
    walked: list[str] = []
    for part in path.split("."):
        at = _plain(at)
        if dataclasses.is_dataclass(at):
            hints = typing.get_type_hints(at)
            if part not in hints:
                prefix = ".".join(walked)
                known = list(hints)
                near = did_you_mean(part, known)
                if near and prefix:
                    near = near.replace("'", f"'{prefix}.", 1)
                return f"no such key. Keys of {prefix or 'the configuration'}: {', '.join(known)}.{near}", False
            at = hints[part]
        elif typing.get_origin(at) is list:
            if not part.isdigit():
                return f"{'.'.join(walked)} is a list; its entries are numbered from 0.", False
            at = typing.get_args(at)[0]
        elif typing.get_origin(at) is dict or at is Any:
            return None, True
        else:
            return f"{'.'.join(walked)} is a single value and has no key {part!r}.", False
        walked.append(part)
    return None, typing.get_origin(_plain(at)) is dict


def check_overrides(overrides: Sequence[str], extra_dirs: Sequence[Path] = ()) -> list[str]:
    """Refuse overrides that name no key, no group or no choice, all of them at once.

    Returns:
        The overrides as Hydra takes them: new keys in parts of free form need its ``++``, which users need not know.

    Raises:
        ConfigError: With one message for each wrong override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups = group_choices(extra_dirs)
    problems: list[str] = []
    accepted: list[str] = []
    parser = OverridesParser.create()
    for text in overrides:
        accepted.append(text)
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            why = str(error).splitlines()[0]
            problems.append(f"{text}: not an override. {why}. Write key=value, and quote values with spaces or '='.")
            continue
        key = override.key_or_group.split("@")[0].lstrip("/")
        if key.startswith("hydra") and key not in groups:
            continue
        if key in groups and not override.is_delete():
            names = override.value() if not override.is_sweep_override() else override.sweep_string_iterator()
            if isinstance(names, str):
                names = [names]
            for name in names if isinstance(names, (list, typing.Iterator)) else []:
                if str(name) not in groups[key]:
                    problems.append(
                        f"{key}={str(name)!r}: not a choice. Choices: {', '.join(groups[key])}."
                        f"{did_you_mean(str(name), groups[key])}"
                    )
            continue
        why_not, free = find_key(key)
        if why_not:
            problems.append(f"{text}: {why_not}")
        elif free and not text.startswith(("+", "~")):
            accepted[-1] = f"++{text}"
    if problems:
        raise ConfigError(problems)
    return accepted


def register_schema() -> None:
    """Make the dataclasses known to Hydra, so that composition itself checks names and types."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: Any) -> Config:
    """A composed OmegaConf node as the plain dataclass, every interpolation resolved.

    Raises:
        ConfigError: A mandatory value is missing, or a value has the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        typed = OmegaConf.merge(OmegaConf.structured(Config), composed)
        run_dir = typed.run_dir
        typed.run_dir = RUN_DIR
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise ConfigError([f"{key}: must be given. Write {key}=... on the command line." for key in missing])
        config = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise UserError(omegaconf_message(error)) from error
    assert isinstance(config, Config)
    config.run_dir = run_dir
    check(config)
    return config


def omegaconf_message(error: Exception) -> str:
    """One line from an OmegaConf or Hydra error: the key, its value, what was expected."""
    first = str(getattr(error, "msg", None) or error).strip().splitlines()[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {first}" if key and not first.startswith(str(key)) else first


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain containers, ready for JSON, YAML or a checkpoint."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The configuration as YAML, for people; :func:`from_yaml` reads it back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def from_yaml(path: Path) -> Config:
    """A configuration from a run folder.

    Raises:
        UserError: It is not there, is no YAML, or does not fit the schema.
    """
    import yaml
    from omegaconf import OmegaConf

    try:
        loaded = OmegaConf.load(path)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read. {str(error).splitlines()[0]}") from error
    return to_config(loaded)


def from_plain(values: dict[str, Any]) -> Config:
    """The inverse of :func:`to_plain`, checked against the schema."""
    return to_config(values)


def compose(overrides: Sequence[str]) -> Config:
    """Compose the configuration of a run from overrides, as the command line does.

    Raises:
        UserError: An override is wrong.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    accepted = check_overrides(overrides)
    register_schema()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose("train", overrides=accepted)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error)) from error
    return to_config(composed)


def hydra_message(error: BaseException) -> str:
    """One message from a Hydra error: its own first line, and the cause where that says more."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if "not a subclass of PhaseConfig" in str(error):
        return f"{lines[0].split()[-1]}: there is no phase of that number. Phases are numbered from 0."
    cause = error.__cause__
    if cause is not None and str(cause).strip():
        why = str(cause).strip().splitlines()[0]
        if why not in lines[0]:
            return f"{lines[0].rstrip('.')}: {why}"
    useful = [line for line in lines if not line.startswith(("full_key", "object_type", "Set the environment"))]
    return ". ".join(line.rstrip(".") for line in useful[:2]) + "."


LR_SCHEDULES = ("cosine", "constant", "one_cycle", "plateau")
BATCH_NORM_MODES = ("train", "eval")
PARAMETER_KINDS = ("all", "norms", "gates")
LOSSES = ("cross_entropy", "focal")
CLASS_WEIGHTS = ("none", "balanced")
ADAPTS = ("expand", "fold", "sum", "reinit", "tile")


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
    for stage, rate in at.stage_lr.items():
        if rate < 0:
            problems.append(f"{prefix}.stage_lr.{stage}={rate}: must not be negative.")
    if at.lr_slice is not None and at.stage_lr:
        problems.append(f"{prefix}.lr_slice and {prefix}.stage_lr: only one of them can set the rates.")
    _choice(problems, f"{prefix}.lr_schedule", at.lr_schedule, LR_SCHEDULES)
    _choice(problems, f"{prefix}.batch_norm", at.batch_norm, BATCH_NORM_MODES)
    _choice(problems, f"{prefix}.parameters", at.parameters, PARAMETER_KINDS)
    _choice(problems, f"{prefix}.restore", at.restore, ("best", "last"))


def check(config: Config) -> None:
    """Cross-field checks that need neither the data nor the network.

    Raises:
        ConfigError: With every problem found.
    """
    problems: list[str] = []
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
    if config.data.source == "folder" and not config.data.root:
        problems.append("data.root: must be given. Write data.root=DIR, the folder that holds your images.")
    for source, key, what in (
        ("manifest", "path", "FILE, a CSV, TSV or Parquet table"),
        ("huggingface", "path", "DIR, a data set on disk"),
        ("torchvision", "name", "NAME, such as OxfordIIITPet"),
    ):
        if config.data.source == source and not getattr(config.data, key):
            problems.append(f"data.{key}: must be given. Write data.{key}={what}.")
    _choice(problems, "input.adapt", config.input.adapt, ADAPTS)
    _choice(problems, "loss.name", config.loss.name, LOSSES)
    _choice(problems, "loss.class_weights", config.loss.class_weights, CLASS_WEIGHTS)
    for key in ("batch_size", "eval_batch_size", "limit_per_class", "classes", "images_per_class", "image_size"):
        value = getattr(config.data, key)
        if value is not None and value < 1:
            problems.append(f"data.{key}={value}: must be at least 1.")
    if config.data.num_workers is not None and config.data.num_workers < 0:
        problems.append(f"data.num_workers={config.data.num_workers}: must not be negative.")
    for key in ("val_fraction", "test_fraction"):
        value = getattr(config.data, key)
        if not 0 < value < 1:
            problems.append(f"data.{key}={value}: must lie strictly between 0 and 1.")
    if config.data.val_fraction + config.data.test_fraction >= 1:
        problems.append(
            f"data.val_fraction={config.data.val_fraction}, data.test_fraction={config.data.test_fraction}: "
            "must leave something to train on. Together they take everything."
        )
    if not 0 <= config.head.drop_rate < 1:
        problems.append(f"head.drop_rate={config.head.drop_rate}: must be at least 0 and below 1.")
    if config.checkpoint.every_n_steps is not None and config.checkpoint.every_n_steps < 1:
        problems.append(f"checkpoint.every_n_steps={config.checkpoint.every_n_steps}: must be at least 1.")
    if problems:
        raise ConfigError(problems)


def instantiate(node: dict[str, Any], *, run_dir: Path | None = None, **arguments: Any) -> Any:
    """Build the object that a ``_target_`` node describes.

    Args:
        node: ``_target_`` and its arguments.
        run_dir: Put in place of the node's mentions of the run folder.
        **arguments: Further arguments, handed over as they are.

    Raises:
        UserError: The target cannot be found, or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    target = node.get("_target_")
    try:
        return hydra_instantiate(_with_run_dir(node, run_dir), **arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        why = str(cause).strip().splitlines()[0]
        if isinstance(cause, ModuleNotFoundError) or "Error locating target" in str(error):
            raise UserError(f"{target}: cannot be imported. {why}. Install the package that holds it.") from error
        raise UserError(f"{target}: does not take these arguments. {why}.") from error


def locate(target: str) -> Any:
    """The class or function of a dotted path.

    Raises:
        UserError: There is none.
    """
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception as error:
        raise UserError(f"_target_={target!r}: cannot be imported. {error}") from error


def _with_run_dir(value: Any, run_dir: Path | None) -> Any:
    if isinstance(value, dict):
        return {key: _with_run_dir(inner, run_dir) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_run_dir(inner, run_dir) for inner in value]
    if isinstance(value, str) and run_dir is not None:
        return value.replace(RUN_DIR, str(run_dir))
    return value


def quoted(value: object) -> str:
    """A value as Hydra's override grammar takes it, whatever characters it holds.

    >>> quoted("a b=c")
    "'a b=c'"
    """
    # Hydra reads a backslash as itself, except in a row of them before a quote
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), str(value))
    return f"'{text}'"
