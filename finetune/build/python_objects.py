"""Build a run from Python objects instead of settings: its data, network, head, loss, transform, callbacks and loggers."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from finetune.build import RunParts
from finetune.build.classifier import Show, build_model, build_pretrained, image_size, network_name
from finetune.build.data import build_data, build_source
from finetune.build.paths import check_paths
from finetune.build.phases import build_phases, check_monitor
from finetune.build.user_objects import own_head, own_modules
from finetune.config.schema import Config
from finetune.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from finetune.data.image_source import Source
    from finetune.data.transforms import OwnTransform
    from finetune.input_spec import InputSpec
    from finetune.models.backbone import Backbone
    from finetune.models.classifier import Classifier
    from finetune.training.phases import Phase

# value of `data.source` in the configuration of a run whose data is an object
PYTHON = "python"


@dataclass(frozen=True, kw_only=True)
class PythonObjects:
    """The objects that Python passes to a run; None and empty leave it to the configuration.

    Args:
        source: Data set.
        backbone: Network; it is trained in place, not copied.
        head: Head; it is trained in place, not copied.
        loss: Training loss, from logits (B, K) and targets to one number or to losses (B,).
        transform: Function of a training view, uint8 (C, H, W), after the augmentation.
        metrics: torchmetrics metrics by name, beside those of the configuration.
        callbacks: Lightning callbacks, beside those of the configuration.
        loggers: Lightning loggers, beside those of the configuration.
    """

    source: "Source | None" = None
    backbone: "Backbone | None" = None
    head: "nn.Module | None" = None
    loss: "nn.Module | None" = None
    transform: Callable[[Any], Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Any] = ()
    loggers: Sequence[Any] = ()

    def names(self) -> dict[str, str]:
        """Return the class names, by argument, of the objects that the result depends on and a resume needs again."""
        given = {
            "data": self.source,
            "backbone": None if self.backbone is None else self.backbone.net,
            "head": self.head,
            "loss": self.loss,
            "transform": self.transform,
        }
        named = {key: _class_of(value) for key, value in given.items() if value is not None}
        return named | ({"metrics": ", ".join(sorted(self.metrics))} if self.metrics else {})


def _class_of(value: object) -> str:
    kind = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def require_objects(needed: Mapping[str, str], objects: PythonObjects | None, *, run: str) -> None:
    """Check that a resumed run is given the objects that it began with.

    Args:
        needed: Names that :meth:`PythonObjects.names` returned when the run began.
        objects: Objects given now; None on the command line.
        run: Run folder as the user wrote it.

    Raises:
        UserError: Objects are missing, or there are too many; the message shows the call.
    """
    given = {} if objects is None else objects.names()
    if set(given) == set(needed):
        return
    call = ", ".join([repr(run), *(f"{key}=..." for key in needed)])
    what = ", ".join(f"{key} ({name})" for key, name in needed.items()) or "no objects"
    raise UserError(
        f"RUN='{run}': must be resumed with the objects that it began with. It began with {what}; given: "
        f"{', '.join(given) or 'none'}. Write in Python: finetune.resume({call})."
    )


def assemble_with_objects(
    config: Config,
    objects: PythonObjects,
    show: Show = lambda line: None,
    description: Mapping[str, Any] | None = None,
    *,
    trusted: bool = True,
) -> RunParts:
    """Build what :func:`finetune.build.assemble` builds, with the given objects in place of configured ones.

    Args:
        config: Checked configuration.
        objects: Objects that replace configured ones.
        show: Function that shows a line to the user.
        description: Description of the network, if its weights will be loaded from a run; None builds it at its start.
        trusted: Whether the user typed the configuration, or trusts its run.

    Raises:
        UserError: Objects and configuration do not fit together.
    """
    if objects.source is None:
        check_paths(config)
    source = build_source(config) if objects.source is None else objects.source
    for line in source.index.notes:
        show(line)
    classifier = (
        _classifier(config, objects, source, show, trusted=trusted)
        if description is None
        else _described(config, objects, description, trusted=trusted)
    )
    phases = build_phases(config, stages=classifier.stages, network=network_name(config))
    _check_solvers(phases, objects)
    if objects.head is not None or objects.loss is not None or config.monitor.removeprefix("val/") in objects.metrics:
        phases = [replace(phase, solver="gradient") if phase.solver == "auto" else phase for phase in phases]
    check_monitor(config, phases, own=objects.metrics)
    data = build_data(config, source, classifier, trusted=trusted)
    if objects.transform is not None:
        data.transform = _transform(objects.transform, classifier.input_spec)
    return RunParts(source=source, classifier=classifier, data=data, phases=phases)


def loss_with_objects(loss: "nn.Module", *, num_classes: int, multi_label: bool) -> "Callable[[Phase], nn.Module]":
    """Return a function that gives every phase the user's loss, after trying the loss on two images.

    Raises:
        UserError: The loss has parameters of its own, or does not take logits and targets.
    """
    import torch

    from finetune.training.losses import OwnLoss

    name = type(loss).__name__
    if any(parameter.requires_grad for parameter in loss.parameters()):
        raise UserError(
            f"loss={name}: has parameters of its own, which would not train. Put them into the head, or set their "
            "requires_grad to False."
        )
    targets = torch.zeros(2, num_classes) if multi_label else torch.zeros(2, dtype=torch.int64)
    own = OwnLoss(loss)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            own(torch.zeros(2, num_classes), targets)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        why = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
        raise UserError(
            f"loss={name}: must take logits (B, {num_classes}) and targets {tuple(targets.shape)} of {targets.dtype}. "
            f"{type(error).__name__}: {why}. Choose a loss that does."
        ) from error
    return lambda phase: own


def _classifier(config: Config, objects: PythonObjects, source: "Source", show: Show, *, trusted: bool) -> "Classifier":
    from finetune.models.classifier import build_classifier
    from finetune.models.heads import HEADS

    if objects.backbone is None and objects.head is None:
        return build_model(config, source, show, trusted=trusted)
    backbone = objects.backbone or build_pretrained(config, show, trusted=trusted)
    classes = source.index.classes
    node: Mapping[str, Any] | None = None
    head: Any = objects.head
    if head is None and config.head._target_ is not None:
        head, node = own_head(config, num_features=backbone.num_features, num_classes=len(classes), trusted=trusted)
    elif head is None:
        head = {"name": config.head.name, "drop_rate": config.head.drop_rate}
        head |= kind.own_settings(config.head) if (kind := HEADS.get(config.head.name)) is not None else {}
    return build_classifier(
        backbone,
        head=head,
        classes=classes,
        channels=source.decode.channels,
        size=image_size(config.input.size),
        adapt=config.input.adapt,
        seed=config.seed,
        multi_label=source.index.multi_label,
        head_target=node,
    )


def _described(
    config: Config, objects: PythonObjects, description: Mapping[str, Any], *, trusted: bool
) -> "Classifier":
    from finetune.bundle import description_problems
    from finetune.models.classifier import classifier_from_description
    from finetune.models.own_modules import own_classes

    if problems := description_problems(dict(description)):
        raise UserError(f"run.json: its model is damaged. {problems[0]}.")
    modules = dict(own_modules(config, description, trusted=trusted))
    if objects.backbone is not None and "backbone" in own_classes(description):
        modules["backbone"] = objects.backbone.net
    if objects.head is not None:
        modules["head"] = objects.head
    return classifier_from_description(description, modules=modules)


def _transform(function: Callable[[Any], Any], spec: "InputSpec") -> "OwnTransform":
    import torch

    from finetune.data.transforms import OwnTransform

    if not callable(function):
        raise UserError(f"transform: must be a function of an image. It is a {type(function).__name__}.")
    # a later run cannot recognise the object, so its cached views get a key of their own
    transform = OwnTransform(function=function, key={"object": uuid.uuid4().hex})
    with torch.random.fork_rng(devices=[]):
        transform(torch.zeros(spec.channels, *spec.size, dtype=torch.uint8))
    return transform


def _check_solvers(phases: "Sequence[Phase]", objects: PythonObjects) -> None:
    solved = [phase.name for phase in phases if phase.must_solve_head]
    own = [name for name, value in (("head", objects.head), ("loss", objects.loss)) if value is not None]
    if solved and own:
        raise UserError(
            f"{own[0]}: phase {solved[0]!r} has solver=lbfgs, which solves linear heads by finetune's own losses. Leave {own[0]} "
            "out, or choose a schedule with solver=gradient."
        )


def with_objects_named(config: Config, objects: PythonObjects) -> Config:
    """Return a configuration that names the classes of the objects, for display.

    It is only shown, and recorded in the results; a run is never built from it.
    """
    names = objects.names()
    changed = config
    if "loss" in names:
        changed = replace(changed, loss=replace(changed.loss, _target_=names["loss"]))
    if "backbone" in names:
        changed = replace(changed, backbone=replace(changed.backbone, _target_=names["backbone"], weights="given"))
    return changed
