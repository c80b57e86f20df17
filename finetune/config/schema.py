"""The schema of the configuration: every key of our own parts, with its type, default and meaning."""

from dataclasses import dataclass, field
from typing import Any, Optional

# OmegaConf reads `Optional[...]`, not `X | None`, in every version that hydra-core 1.3 allows.
# ruff: noqa: UP045


@dataclass
class DataConfig:
    """Source of the images, splits and batches (``conf/data/``)."""

    source: str = "folder"
    # a folder, or a list of folders that together are one data set
    root: Any = None
    # auto | classes (each folder of root is a class) | splits (its folders are splits that hold the classes)
    layout: str = "auto"
    # file of a table (data=manifest), or folder of a data set on disk (data=huggingface)
    path: Optional[str] = None
    # name of a torchvision data set (data=torchvision)
    name: Optional[str] = None
    # columns of a table; several labels are either in one column with a separator, or in one 0/1 column per class
    path_column: str = "path"
    image_column: str = "image"
    label_column: str = "label"
    split_column: str = "split"
    label_separator: Optional[str] = None
    label_columns: Optional[list[str]] = None
    # images that belong together (of one patient, plate, video) lie in one split: a column of a table, or a regular
    # expression on the path relative to the folder, whose part (?P<group>...), or first part in parentheses, is the group
    group_column: Optional[str] = None
    group_pattern: Optional[str] = None
    # splits that the data does not define are created: stratified, grouped by content, seeded by the run's seed;
    # ranges stand in SplitSettings
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    folds: Optional[int] = None
    fold: int = 0
    limit_per_class: Optional[int] = None
    # error | skip
    on_unreadable: str = "error"
    # null: Pillow's limit, 178,956,970
    max_pixels: Optional[int] = None
    # how values of more than 8 bits become 8 bits: full | stretch
    high_depth: str = "full"
    # draw training images so that every class appears equally often
    balanced: bool = False
    # images in one optimizer step, over all devices together: results do not depend on the number of devices
    batch_size: int = 32
    eval_batch_size: int = 64
    # null: none for data in memory, else one less than the number of cores of this process
    num_workers: Optional[int] = None
    # the name of a training view, or a list of operations of torchvision.transforms.v2 (`conf/augment/`)
    augment: Any = "standard"
    # a node of the user's: applied to each training view after `augment`, uint8 (C, H, W) to the same
    transform: dict[str, Any] = field(default_factory=dict)
    # for formula images only (data=fractals); null takes the source's default
    recipe: Optional[str] = None
    classes: Optional[int] = None
    images_per_class: Optional[int] = None
    image_size: Optional[int] = None


@dataclass
class InputConfig:
    """Input of the network; null takes the value of the data or of the pretrained weights."""

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
    # a network of the user's: its class, and the child modules of each stage in order from the input (backbone=own)
    _target_: Optional[str] = None
    stages: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class HeadConfig:
    """The classifier on top of the backbone (``conf/head/``)."""

    name: str = "linear"
    drop_rate: float = 0.0
    hidden: int = 512
    weights: Optional[str] = None
    # a head of the user's: its class and the arguments of its constructor (head=own)
    _target_: Optional[str] = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class PhaseSettings:
    """Settings of one phase, or of all phases under ``schedule.``; null inherits."""

    epochs: Optional[int] = None
    max_steps: Optional[int] = None
    lr: Optional[float] = None
    # learning rates of heads trained side by side on cached features, for a phase that trains only the head
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
    augment: Any = None
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
    """One phase and the stages that it trains; settings that are null are taken from ``schedule``."""

    name: str = "phase"
    train: list[str] = field(default_factory=list)


@dataclass
class ScheduleConfig(PhaseSettings):
    """The ordered phases and their shared settings (``conf/schedule/``)."""

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
    # a loss of the user's: its class and the arguments of its constructor (loss=own)
    _target_: Optional[str] = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class CacheConfig:
    """The activation cache, which all runs share (``finetune cache``)."""

    # limit of all entries together, in 10^9 bytes; the least recently used entries are deleted to stay below it
    max_gb: float = 20.0


@dataclass
class CheckpointConfig:
    """When training state is saved, in addition to the end of every epoch."""

    every_n_steps: Optional[int] = None


@dataclass
class Config:
    """The whole configuration of a run."""

    seed: int = 0
    name: Optional[str] = None
    run_dir: Optional[str] = None
    monitor: str = "val/acc"
    # of the whole schedule: epochs of each phase; highest rate of all phases, the others in their ratios to it
    epochs: Optional[int] = None
    lr: Optional[float] = None
    # write report.html at the end; `finetune report RUN` writes it at any time
    report: bool = True
    # auto | off | on: whether torch.compile compiles the trainable part; auto is off
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
    # nodes for classes of other libraries: `_target_` and the arguments of the class
    optimizer: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
