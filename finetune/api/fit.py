"""Training from Python: ``finetune.fit`` for those who bring only data, and ``finetune.resume``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.api.model_argument import run_folder
from finetune.arguments import public
from finetune.config.schema import PhaseConfig

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger
    from torch import Tensor, nn
    from torchmetrics import Metric

    from finetune.api.model_argument import Run
    from finetune.api.phase import PhaseList
    from finetune.models.backbone import Backbone
    from finetune.training.run_result import RunResult


@public
def fit(
    data: Any,
    *,
    backbone: "str | Backbone | nn.Module" = "resnet18",
    head: "str | Mapping[str, Any] | nn.Module | None" = None,
    schedule: "str | PhaseConfig | Sequence[PhaseConfig] | PhaseList" = "gradual",
    weights: str | Path | None = None,
    stages: Mapping[str, Sequence[str]] | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    freeze: str | Sequence[str] = (),
    augment: str | None = None,
    transform: "Callable[[Tensor], Tensor] | None" = None,
    loss: "str | nn.Module | None" = None,
    monitor: str | None = None,
    metrics: "Mapping[str, Metric] | None" = None,
    callbacks: "Sequence[Callback]" = (),
    loggers: "str | Sequence[Logger] | None" = None,
    run_dir: str | Path | None = None,
    resume: str = "never",
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> "RunResult":
    """Train, test and write the bundle and the report, as ``finetune train`` does.

        run = finetune.fit("pets", backbone="efficientnet_b0", schedule="frozen", epochs=5)
        run = finetune.fit(frame, schedule=[finetune.Phase(train=["head"], epochs=3), finetune.Phase(train=["all"], lr=1e-4)])
        run = finetune.fit({"train": train_set, "val": val_set}, head=MyHead(512, 3), loss=nn.CrossEntropyLoss())

    Args:
        data: A folder of images (``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``); a table or a data frame with columns
            ``path`` and ``label``, and perhaps ``split``; a map-style data set of ``(image, target)``, or one for each of
            ``train``, ``val``, ``test``; a LightningDataModule, whose data sets are used; or ``"digits"``. Missing splits are
            made.
        backbone: A network of ``conf/backbone`` or of timm, a backbone from :func:`finetune.build_backbone`, or a module of your
            own with ``stages``.
        head: ``linear``, ``mlp``, ``cosine``; settings such as ``{"name": "mlp", "hidden": 256}``; or a module of your own from
            features (B, D) to logits (B, K). None uses the configuration's.
        schedule: Name of a schedule in ``conf/schedule``, phases in order, or a :class:`finetune.Schedule` of either.
        weights: Where the backbone's weights come from; None uses the configuration's, or those of a given module.
        stages: For a module of your own: the child modules of each stage, in order from the input.
        lr: Highest learning rate of the schedule; phases keep their ratios to it. None keeps the schedule's.
        epochs: Passes over the training images in every phase; None keeps the schedule's.
        batch_size: Images in one optimizer step; None uses the configuration's.
        size: Side, or height and width, of the network's input in pixels; None uses that of the weights.
        channels: 1 for grey images, 3 for colour; None uses those of the data.
        classes: Names of the classes of a data set, in the order of their numbers; None takes them from the data set.
        freeze: A stage, or stages, that no phase trains.
        augment: ``none``, ``light``, ``standard``, ``trivial_augment`` or ``rand_augment``; None uses the configuration's.
        transform: Function applied to each training view after that, from uint8 (C, H, W) to the same.
        loss: ``cross_entropy``, ``focal``, or a module of your own from logits (B, K) and targets to one number or losses (B,).
        monitor: Metric that decides which epoch is best, ``val/acc`` for example.
        metrics: torchmetrics metrics by name, in addition to those of every run; each gives one number, and may be monitored.
        callbacks: Lightning callbacks, which every phase's Trainer gets; those with a state_dict begin each phase as given.
        loggers: ``tensorboard``, ``mlflow``, ``wandb``, ``none``, or Lightning loggers; None uses the configuration's.
        run_dir: A new folder; None creates one under ``runs/``.
        resume: ``never`` needs a new folder; ``auto`` starts the run, or goes on with it if ``run_dir`` holds it.
        seed: Seed of all randomness.
        overrides: Other overrides, as on the command line, for instance ``["schedule.phases.1.epochs=5"]``.

    Returns:
        ``run_dir``, ``bundle`` and ``results`` of the run.

    Raises:
        UserError: An argument, an override, the data or the weights are wrong; all wrong overrides are named in one message.
        RunError: Training could not continue.
    """
    from finetune.api.settings import FitArguments
    from finetune.runners.train import train
    from finetune.terminal_log import show_log

    show_log()
    config, objects = FitArguments(
        data=data,
        backbone=backbone,
        head=head,
        schedule=schedule,
        weights=weights,
        stages=stages,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        size=size,
        channels=channels,
        classes=classes,
        freeze=freeze,
        augment=augment,
        transform=transform,
        loss=loss,
        monitor=monitor,
        metrics=metrics or {},
        callbacks=callbacks,
        loggers=loggers,
        run_dir=run_dir,
        resume=resume,
        seed=seed,
        overrides=overrides,
    ).config_and_objects()
    return train(config, objects=objects)


@public
def resume(
    run_dir: "Run",
    *,
    data: Any = None,
    backbone: "nn.Module | Backbone | None" = None,
    head: "nn.Module | None" = None,
    loss: "nn.Module | None" = None,
    transform: "Callable[[Tensor], Tensor] | None" = None,
    metrics: "Mapping[str, Metric] | None" = None,
    callbacks: "Sequence[Callback]" = (),
    loggers: "Sequence[Logger]" = (),
    classes: Sequence[str] | None = None,
    anyway: bool = False,
    trust: bool = False,
) -> "RunResult":
    """Continue a stopped run to a bitwise identical result, as ``finetune resume`` does.

    Args:
        run_dir: Run folder.
        data: The same data set, if the run was given one as an object.
        backbone: A network of the same class, if the run was given one as an object; its weights are loaded.
        head: A head of the same class, if the run was given one as an object; its weights are loaded.
        loss: The same loss, if the run was given one as an object.
        transform: The same transform, if the run was given one as an object.
        metrics: The same metrics, if the run was given some as objects.
        callbacks: Lightning callbacks that were given as objects.
        loggers: Lightning loggers that were given as objects.
        classes: Names of the classes of ``data``, if they were given.
        anyway: Continue with other versions of the program or its libraries.
        trust: Build every class that the run's configuration names.

    Returns:
        The result, also of a run that had already finished.

    Raises:
        UserError: Something that the result depends on has changed, or an object is missing; the message names it.
    """
    from finetune.api.settings import FitArguments
    from finetune.build.python_objects import PythonObjects
    from finetune.config import from_yaml
    from finetune.errors import UserError
    from finetune.models.backbone import Backbone
    from finetune.models.build import backbone_from_description
    from finetune.models.user_modules import OWN
    from finetune.run_folder import read_run_record
    from finetune.run_names import CONFIG
    from finetune.runners.resume import resume as resume_run
    from finetune.safe_files import inside

    folder = run_folder(run_dir, "run_dir")
    read_run_record(folder)
    config = from_yaml(inside(folder, CONFIG))
    source = None if data is None else FitArguments(data=data, classes=classes).source_for(config)
    if backbone is not None and not isinstance(backbone, Backbone):
        model: Any = read_run_record(folder).model
        described = model["backbone"]
        if described["source"] != OWN:
            raise UserError(
                "backbone: this run started with a network of a library. Give finetune.build_backbone(...)."
            )
        adapted = (model["input_spec"]["channels"], model["adapt"])
        backbone = backbone_from_description(described, module=backbone, adapted=adapted)
    objects = PythonObjects(
        source=source,
        backbone=backbone,
        head=head,
        loss=loss,
        transform=transform,
        metrics=metrics or {},
        callbacks=tuple(callbacks),
        loggers=tuple(loggers),
    )
    return resume_run(folder, anyway=anyway, trust=trust, objects=objects)
