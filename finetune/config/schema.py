"""The schema of the configuration: every key of our own parts, its type, its default and what it means."""

from dataclasses import dataclass, field
from typing import Any, Optional

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
    # rates of heads that are trained side by side on cached features, for a phase that trains the head alone
    lr_trials: list[float] = field(default_factory=list)
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
    # auto | off | features | number of views: train on cached activations of the frozen prefix
    cache: Any = None
    # gradient | lbfgs: how the head is trained; lbfgs solves it to convergence on cached features
    solver: Optional[str] = None


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
    cache: Any = "auto"
    solver: Optional[str] = "gradient"


@dataclass
class LossConfig:
    """The training loss."""

    name: str = "cross_entropy"
    focal_gamma: float = 2.0
    class_weights: str = "none"


@dataclass
class CacheConfig:
    """The cache of activations, which all runs share (``finetune cache``)."""

    # 10^9 bytes of all entries together: the ones used longest ago are deleted to stay below it
    max_gb: float = 20.0


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
    # write report.html at the end; `finetune report RUN` writes it at any time
    report: bool = True
    # auto | off | on: whether what trains is compiled by torch.compile; auto is off
    compile: Any = "auto"
    freeze: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    # nodes for classes of other libraries: `_target_` and whatever arguments those take
    optimizer: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
