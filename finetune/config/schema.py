"""The schema of the configuration: every key of our own parts, with its type, default, allowed values and meaning.

``finetune settings``, shell completion, the checks, the comments in ``conf/`` and the documentation all read it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

# OmegaConf reads `Optional[...]`, not `X | None`, in every version that hydra-core 1.3 allows.
# setting() returns what dataclasses.field does.
# ruff: noqa: UP045, RUF009


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The properties of a key besides its type and default.

    Args:
        meaning: A phrase that says what the key does, with units, and what null means.
        choices: Allowed words; empty if any value is allowed.
        above: Limit that a number must exceed.
        least: Smallest number.
        most: Largest number.
        below: Limit that a number must stay under.
        example: An override to copy.
        is_path: Whether it is a path, or may be one.
    """

    meaning: str
    choices: Sequence[str] = ()
    above: Optional[float] = None
    least: Optional[float] = None
    most: Optional[float] = None
    below: Optional[float] = None
    example: str = ""
    is_path: bool = False

    def limits(self) -> str:
        """Return the range of a number in words; empty if there is none.

        >>> Setting(meaning="", least=0, below=1).limits()
        'at least 0 and below 1'
        """
        if self.above is not None and self.below is not None:
            return f"strictly between {self.above:g} and {self.below:g}"
        if self.least is not None and self.most is not None:
            return f"between {self.least:g} and {self.most:g}"
        words = ("above", "at least", "below", "at most")
        values = (self.above, self.least, self.below, self.most)
        return " and ".join(f"{word} {value:g}" for word, value in zip(words, values, strict=True) if value is not None)

    def allows(self, number: float) -> bool:
        """Tell whether a number lies in the range."""
        return (
            (self.above is None or number > self.above)
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )


def setting(default: Any, meaning: str, **more: Any) -> Any:
    """Return a field of the schema; a default that is a type, such as ``list``, makes a new one each time."""
    metadata = {"setting": Setting(meaning=meaning, **more)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def setting_of(one: "dataclasses.Field[Any]") -> Setting:
    """Return the :class:`Setting` of a field; an empty one for a section, which has a docstring."""
    found = one.metadata.get("setting")
    return found if isinstance(found, Setting) else Setting(meaning="")


@dataclass
class DataConfig:
    """Source of the images, splits and batches (``conf/data/``)."""

    source: str = setting("folder", "kind of data; data=NAME chooses it with its own settings")
    root: Any = setting(
        None,
        "folder of images, or a list of folders that together are one data set",
        example="data.root=~/pets",
        is_path=True,
    )
    layout: str = setting(
        "auto",
        "auto | classes (each folder of root is a class) | splits (its folders are splits that hold the classes)",
    )
    path: Optional[str] = setting(
        None,
        "file of a table (data=manifest), or folder of a data set on disk (data=huggingface)",
        example="data=labels.csv",
        is_path=True,
    )
    name: Optional[str] = setting(
        None, "name of a torchvision data set (data=torchvision)", example="data.name=OxfordIIITPet"
    )
    path_column: str = setting("path", "column of a table with the path of each image")
    image_column: str = setting("image", "column of a Hugging Face data set with the images")
    label_column: str = setting("label", "column with the label of each image")
    split_column: str = setting("split", "column with train, val or test; not needed in a table")
    label_separator: Optional[str] = setting(
        None, "text between several labels in one column; null: one label per image", example="'data.label_separator=;'"
    )
    label_columns: Optional[list[str]] = setting(
        None,
        "0/1 columns of several labels, one per class; null: one column of labels",
        example="data.label_columns=cat,dog",
    )
    group_column: Optional[str] = setting(
        None,
        "column of groups, such as patients, plates or videos; the images of a group stay in one split",
        example="data.group_column=patient",
    )
    group_pattern: Optional[str] = setting(
        None,
        "regular expression on the path in the folder; its (?P<group>...), or first part in parentheses, is the group",
        example="'data.group_pattern=(patient\\d+)'",
    )
    val_fraction: float = setting(
        0.15, "share of each class for validation, if the data has no such split", least=0, below=1
    )
    test_fraction: float = setting(
        0.15, "share of each class for the test, if the data has no such split", least=0, below=1
    )
    folds: Optional[int] = setting(
        None, "folds for cross-validation, one of which is used for validation; null: a single split", least=2
    )
    fold: int = setting(0, "fold used for validation, counted from 0", least=0)
    limit_per_class: Optional[int] = setting(
        None, "maximum training images per class; validation and test are not reduced; null: all", least=1
    )
    split_from: Optional[str] = setting(
        None,
        "a run whose images keep their splits, known by content or path; new images are split as usual; null: split all",
        example="data.split_from=my_run",
        is_path=True,
    )
    old_classes: Optional[list[str]] = setting(
        None,
        "classes of an earlier model, which come first in this order, with images or without; finetune grow sets it; null: none",
    )
    rename: dict[str, str] = setting(
        dict,
        "new names of classes, by their old ones; classes of one new name are merged",
        example="data.rename.tabby=cat",
    )
    on_unreadable: str = setting("error", "what to do with an image that cannot be read", choices=("error", "skip"))
    max_pixels: Optional[int] = setting(None, "maximum pixels of an image; null: Pillow's limit, 178,956,970", least=1)
    high_depth: str = setting(
        "full",
        "how more than 8 bits are scaled to 8: full by one range for the data set, stretch by each image's own range",
        choices=("full", "stretch"),
    )
    bit_depth: Any = setting(
        "auto",
        "bits of integers in files of more than 8 bits: auto measures the data set, or 8 | 10 | 12 | 14 | 16",
        example="data.bit_depth=12",
    )
    integer_range: Optional[list[float]] = setting(
        None,
        "integers that become black and white, in place of bit_depth; null: measured over the data set",
        example="data.integer_range=-160,240",
    )
    float_range: Optional[list[float]] = setting(
        None,
        "values that become black and white in floating-point files; null: measured over the data set",
        example="data.float_range=0,1",
    )
    balanced: bool = setting(
        False, "draw training images so that every class appears equally often; a solved head weighs them so"
    )
    batch_size: int = setting(
        32,
        "images in one optimizer step, over all devices together: results do not depend on their number",
        least=1,
        example="batch_size=64",
    )
    eval_batch_size: int = setting(64, "images in one step of validation and test, on each device", least=1)
    num_workers: Optional[int] = setting(
        None, "loader processes; null: none for data in memory or on few cores, else up to 8", least=0
    )
    augment: Any = setting(
        "standard",
        "none | light | standard | trivial_augment | rand_augment, or a list of operations of torchvision.transforms.v2: "
        "random changes to training images",
        example="augment=microscopy",
    )
    transform: dict[str, Any] = setting(
        dict,
        "a transform of your own on each training view, after augment: uint8 (C, H, W) to the same",
        example="data.transform._target_=my.module.Transform",
    )
    recipe: Optional[str] = setting(None, "kind of formula images (data=fractals); null: the source's default")
    classes: Optional[int] = setting(None, "classes of formula images (data=fractals)", least=1)
    images_per_class: Optional[int] = setting(None, "formula images of each class (data=fractals)", least=1)
    image_size: Optional[int] = setting(None, "side of formula images in pixels (data=fractals)", least=1)


@dataclass
class InputConfig:
    """Input of the network; null takes the value of the data or of the pretrained weights (``conf/input/``)."""

    channels: Any = setting(
        "auto", "channels of the images; auto: 1 if all of them are grey, else 3", example="input.channels=1"
    )
    adapt: str = setting(
        "expand",
        "how a stem pretrained on other channels takes these images",
    )
    size: Any = setting(
        None,
        "pixels: one number, or [height, width]; null: what the pretrained weights expect",
        example="input.size=128",
    )
    mean: Optional[list[float]] = setting(
        None, "mean of each channel in 0..1, subtracted; null: that of the pretrained weights"
    )
    std: Optional[list[float]] = setting(
        None, "standard deviation of each channel in 0..1, divided by; null: that of the pretrained weights"
    )
    interpolation: Optional[str] = setting(
        None,
        "nearest | bilinear | bicubic; null: as the weights were trained with",
        example="input.interpolation=bicubic",
    )
    crop_pct: Optional[float] = setting(
        None, "share of the shorter side that an evaluation view keeps, in 0..1; null: as the weights were trained with"
    )
    crop_mode: Optional[str] = setting(
        None, "center | squash: crop the middle, or resize both sides; null: as the weights were trained with"
    )

    @property
    def given_channels(self) -> Optional[int]:
        """Return the given number of channels; None for auto, and for null, which older runs recorded for 3-channel files."""
        return None if self.channels in (None, "auto") else int(self.channels)


@dataclass
class BackboneConfig:
    """The pretrained network (``conf/backbone/``)."""

    source: str = setting("timm", "library of the network: timm, torchvision, transformers, residual, own")
    name: str = setting("resnet18", "name of the network in its library", example="backbone=efficientnet_b0")
    weights: str = setting(
        "imagenet",
        "imagenet | package (of an installed package) | embedded (resnet18) | none (random, or as your own class initialises "
        "them) | hub:NAME | a weights file or folder | a bundle",
        example="weights=path/to/resnet18.safetensors",
        is_path=True,
    )
    pool: Optional[str] = setting(
        None,
        "cls | mean | cls_mean | map | gem: features from the class token, the mean, both, the network's attention pool, or the "
        "generalised mean of a map; null: as the network was made (timm)",
        example="backbone.pool=cls_mean",
    )
    kwargs: dict[str, Any] = setting(dict, "further arguments of the network's constructor")
    _target_: Optional[str] = setting(
        None,
        "a network of your own: a class from images (B, C, H, W) to features (B, D) or maps (B, D, h, w) (backbone=own)",
    )
    stages: dict[str, list[str]] = setting(
        dict,
        "child modules of each stage of your own network, in order from the input; together they hold every parameter once",
    )


@dataclass
class HeadConfig:
    """The classifier on top of the backbone (``conf/head/``)."""

    name: str = setting("linear", "kind of head; head=NAME chooses it with its own settings")
    drop_rate: float = setting(0.0, "probability of dropping a feature in training", least=0, below=1)
    hidden: int = setting(512, "width between the two layers (head=mlp)")
    scale: float = setting(16.0, "initial value of the learned scale of the cosines (head=cosine)")
    weights: Optional[str] = setting(
        None,
        "a file of finetune export --format head, a run or a bundle to start from; classes it lacks are imprinted; null: random",
        example="head.weights=head.safetensors",
        is_path=True,
    )
    _target_: Optional[str] = setting(
        None,
        "a head of your own: a class from features (B, D) to logits (B, K); it gets num_features and num_classes (head=own)",
        example="head._target_=my.module.Head",
    )
    kwargs: dict[str, Any] = setting(dict, "further arguments of your own head")


@dataclass
class PhaseSettings:
    """Settings of one phase, or of all phases under ``schedule.``; null inherits."""

    epochs: Optional[int] = setting(None, "passes over the training images, at most", above=0)
    max_steps: Optional[int] = setting(None, "optimizer steps, at most; null: as the epochs say", above=0)
    lr: Optional[float] = setting(None, "peak learning rate of the head; other stages follow by layer_decay", above=0)
    lr_trials: list[float] = setting(
        list,
        "rates of heads trained side by side on cached features; the best head is kept; for phases that train only the head",
        example="schedule.phases.0.lr_trials=1e-3,1e-2",
    )
    layer_decay: Optional[float] = setting(
        None, "factor on the rate per stage away from the head; the stem is five away in every network", above=0
    )
    lr_slice: Optional[list[float]] = setting(
        None,
        "rates of the deepest and the last stage, with the others between them",
        example="schedule.phases.1.lr_slice=1e-5,1e-3",
    )
    stage_lr: dict[str, float] = setting(
        dict,
        "rate of each stage; overrides the other rules",
        example="schedule.phases.1.stage_lr=layer4:1e-4,head:1e-3",
    )
    lr_schedule: Optional[str] = setting(None, "course of the rate within a phase")
    warmup_epochs: Optional[float] = setting(None, "epochs in which the rate rises from zero", least=0)
    weight_decay: Optional[float] = setting(
        None, "weight decay of matrices and kernels; biases and norms have none", least=0
    )
    batch_norm: Optional[str] = setting(
        None,
        "whether running statistics of trainable stages are updated (train) or kept (eval)",
        choices=("train", "eval"),
    )
    parameters: Optional[str] = setting(
        None,
        "which parameters of a trainable backbone stage train; lora: low-rank adapters on linear layers and 1 x 1 convolutions",
        choices=("all", "norms", "bias", "gates", "lora"),
    )
    lora_rank: Optional[int] = setting(None, "rank of the adapters (parameters=lora)", above=0)
    batch_size: Optional[int] = setting(None, "images in one optimizer step; null: data.batch_size", above=0)
    augment: Any = setting(None, "random changes to training images, as data.augment; null: data.augment")
    optimizer: dict[str, Any] = setting(dict, "node of another optimizer; empty: that of optimizer=NAME")
    carry_optimizer: Optional[bool] = setting(None, "keep the optimizer's moments from the phase before")
    restore: Optional[str] = setting(
        None,
        "weights kept at the end of a phase: of its best epoch by monitor (of its start if none is better), or its last",
        choices=("best", "last"),
    )
    patience: Optional[int] = setting(
        None, "stop after this many epochs without a better monitor; null: never", above=0
    )
    label_smoothing: Optional[float] = setting(None, "share of each target spread over all classes", least=0, most=1)
    mixup: Optional[float] = setting(None, "strength of mixup (its Beta distribution); 0: none", least=0)
    cutmix: Optional[float] = setting(None, "strength of cutmix (its Beta distribution); 0: none", least=0)
    ema_decay: Optional[float] = setting(
        None, "decay per step of the moving average of the weights; null: off", above=0, below=1
    )
    gradient_clip: Optional[float] = setting(None, "maximum norm of the gradient; null: no limit", above=0)
    accumulate: Optional[int] = setting(None, "batches whose gradients make one optimizer step", above=0)
    cache: Any = setting(
        None,
        "auto | off | features | number of views: train on cached activations of the frozen stages",
        example="schedule.cache=off",
    )
    solver: Optional[str] = setting(
        None,
        "gradient trains step by step; lbfgs solves the head to convergence on cached features; auto solves it if possible",
        choices=("gradient", "lbfgs", "auto"),
    )


def _shared(key: str, default: Any) -> Any:
    """Return the field of a setting that all phases share, with its own default."""
    return field(default=default, metadata=PhaseSettings.__dataclass_fields__[key].metadata)


@dataclass
class PhaseConfig(PhaseSettings):
    """The setting of one phase and of the stages that it trains; settings that are null are taken from ``schedule``."""

    name: str = setting("phase", "name of the phase, and of its folder")
    train: list[str] = setting(
        list,
        "stages that train: names of the network's stages, head, all, backbone, or last (the last fifth of the backbone's "
        "stages)",
        example="schedule.phases.1.train=layer4,head",
    )


@dataclass
class ScheduleConfig(PhaseSettings):
    """The ordered phases and their shared settings (``conf/schedule/``)."""

    name: str = setting("custom", "name of the schedule; schedule=NAME chooses it")
    phases: list[PhaseConfig] = setting(list, "the phases, in order")
    epochs: Optional[int] = _shared("epochs", 5)
    lr: Optional[float] = _shared("lr", 1e-3)
    layer_decay: Optional[float] = _shared("layer_decay", 1.0)
    lr_schedule: Optional[str] = _shared("lr_schedule", "cosine")
    warmup_epochs: Optional[float] = _shared("warmup_epochs", 0.0)
    weight_decay: Optional[float] = _shared("weight_decay", 0.01)
    batch_norm: Optional[str] = _shared("batch_norm", "eval")
    parameters: Optional[str] = _shared("parameters", "all")
    lora_rank: Optional[int] = _shared("lora_rank", 8)
    carry_optimizer: Optional[bool] = _shared("carry_optimizer", False)
    restore: Optional[str] = _shared("restore", "best")
    label_smoothing: Optional[float] = _shared("label_smoothing", 0.0)
    mixup: Optional[float] = _shared("mixup", 0.0)
    cutmix: Optional[float] = _shared("cutmix", 0.0)
    accumulate: Optional[int] = _shared("accumulate", 1)
    cache: Any = _shared("cache", "auto")
    solver: Optional[str] = _shared("solver", "gradient")


@dataclass
class LossConfig:
    """The training loss (``conf/loss/``)."""

    name: str = setting("cross_entropy", "kind of loss; loss=NAME chooses it with its own settings")
    focal_gamma: float = setting(2.0, "0 is cross-entropy; larger values down-weight easy images (loss=focal)")
    class_weights: str = setting(
        "none", "balanced gives classes with few images larger weights", choices=("none", "balanced")
    )
    _target_: Optional[str] = setting(
        None,
        "a loss of your own or of torch: a class from logits (B, K) and targets to one number, or one per image (loss=own)",
        example="loss=own loss._target_=torch.nn.CrossEntropyLoss",
    )
    kwargs: dict[str, Any] = setting(dict, "arguments of your own loss")


@dataclass
class CacheConfig:
    """The activation cache, which all runs share (``finetune cache``, ``conf/cache/``)."""

    max_gb: float = setting(
        20.0,
        "limit of all entries together, in 10^9 bytes; the least recently used are deleted to stay below it",
        above=0,
    )


@dataclass
class CheckpointConfig:
    """When training state is saved, in addition to the end of every epoch (``conf/checkpoint/``)."""

    every_n_steps: Optional[int] = setting(
        None, "also save every N optimizer steps; null: only at the ends of epochs", least=1
    )


@dataclass
class Config:
    """The whole configuration of a run."""

    seed: int = setting(0, "seed of all randomness: splits, order, views, initial weights")
    name: Optional[str] = setting(
        None, "name of the run, part of the name of its folder; null: data, network and schedule"
    )
    run_dir: Optional[str] = setting(
        None,
        "new folder for the run; null: a folder under runs/, named by date and time",
        example="run_dir=my_run",
        is_path=True,
    )
    resume: str = setting(
        "never",
        "never: run_dir must be new; auto: start the run, or go on with it if run_dir holds it, so that one line serves both",
        choices=("never", "auto"),
        example="run_dir=my_run resume=auto",
    )
    monitor: str = setting(
        "val/acc",
        "validation metric that decides which epoch is best: val/acc, val/f1_macro, val/loss, val/ece or val/NAME of metrics "
        "(less is better if its higher_is_better is False); with several labels per image also val/f1_micro and val/map",
        example="monitor=val/loss",
    )
    epochs: Optional[int] = setting(None, "epochs of each phase of the schedule; null: as the schedule says", above=0)
    lr: Optional[float] = setting(
        None, "highest learning rate of the schedule; other phases keep their ratio to it; null: as it says", above=0
    )
    calibrate: bool = setting(
        True,
        "divide the logits by a temperature fitted on the validation images, if they support one, so that probabilities can be "
        "believed; no prediction changes",
    )
    thresholds: str = setting(
        "half",
        "with several labels per image: half: a class is predicted above a probability of one half; f1: above a threshold fitted "
        "on the validation images, which gives its F1 score the most and costs exact matches",
        choices=("half", "f1"),
        example="thresholds=f1",
    )
    accept_known: Optional[float] = setting(
        0.95,
        "share of the validation images that count as known: images further from the training images than these are told as "
        "unknown; null: none are",
        above=0,
        below=1,
    )
    report: bool = setting(True, "write report.html at the end; finetune report RUN writes it at any time")
    keep: str = setting(
        "results",
        "what stays of a finished run: results deletes checkpoints and weights between phases, all keeps everything",
        choices=("results", "all"),
    )
    compile: Any = setting("auto", "auto | off | on: whether torch.compile compiles the trainable part; auto is off")
    freeze: list[str] = setting(list, "stages that never train, whatever a phase names", example="freeze=stem,layer1")
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    optimizer: dict[str, Any] = setting(
        dict,
        "class of the optimizer as _target_, and its arguments; rate and weight decay belong to the phases",
        example="optimizer._target_=torch.optim.NAdam",
    )
    trainer: dict[str, Any] = setting(
        dict,
        "arguments of Lightning's Trainer; epochs, steps and clipping belong to the phases",
        example="trainer.devices=2",
    )
    logger: dict[str, Any] = setting(
        dict, "loggers of Lightning by name, each a _target_ and its arguments", example="logger=wandb"
    )
    callbacks: dict[str, Any] = setting(
        dict,
        "further callbacks of Lightning by name, each a _target_ and its arguments",
        example="'callbacks.stop={_target_: lightning.pytorch.callbacks.Timer, duration: 00:01:00:00}'",
    )
    metrics: dict[str, Any] = setting(
        dict,
        "additional metrics by name, each a _target_ and its arguments; each gives one number, val/NAME",
        example="'metrics.kappa={_target_: torchmetrics.CohenKappa, task: multiclass, num_classes: 3}'",
    )
