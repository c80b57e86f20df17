"""Objects from Python in place of settings: the data, network, head, loss, transform, callbacks and loggers of a run."""

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from finetune.build.user_objects import trying
from finetune.config.schema import Config
from finetune.errors import UserError, type_in_words
from finetune.resume_command import resume_in_python

if TYPE_CHECKING:
    from torch import nn

    from finetune.data.image_source import Source
    from finetune.data.transforms import UserTransform
    from finetune.input_spec import InputSpec
    from finetune.models.backbone import Backbone
    from finetune.phases import ResolvedPhase

log = logging.getLogger(__name__)

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

    def beside(self) -> dict[str, tuple[str, ...]]:
        """Return the class names, by argument, of the objects that a resumed run can do without, if the user says so."""
        given = {"callbacks": self.callbacks, "loggers": self.loggers}
        return {key: tuple(_class_of(type(one)) for one in values) for key, values in given.items() if values}


def _class_of(value: object) -> str:
    kind = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def require_objects(
    needed: Mapping[str, str], beside: Mapping[str, Sequence[str]], objects: PythonObjects, *, run: str
) -> None:
    """Check that a resumed run is given the objects that it started with; warn about callbacks and loggers that it is not.

    Args:
        needed: Names that :meth:`PythonObjects.names` returned when the run began.
        beside: Names that :meth:`PythonObjects.beside` returned when the run began.
        objects: Objects given now; none on the command line.
        run: Run folder as the user wrote it.

    Raises:
        UserError: Objects are missing, or there are too many; the message shows the call.
    """
    given = objects.names()
    call = resume_in_python(run, [*needed, *beside])
    if set(given) == set(needed):
        now = objects.beside()
        missing = {key: Counter(names) - Counter(now.get(key, ())) for key, names in beside.items()}
        if named := [f"{key} ({', '.join(names.elements())})" for key, names in missing.items() if names]:
            log.warning(
                "RUN='%s': started with %s from Python, which are not given now, so it continues without them and may end "
                "differently. To continue with them, stop it and call in Python: %s, or the finetune.fit(...) that began it "
                "with resume='auto'.",
                run,
                " and ".join(named),
                call,
            )
        return
    what = ", ".join(f"{key} ({name})" for key, name in needed.items()) or "no objects"
    raise UserError(
        f"RUN='{run}': must be resumed with the objects that it started with. It started with {what}; given: "
        f"{', '.join(given) or 'none'}. Call in Python: {call}."
    )


def loss_with_objects(
    loss: "nn.Module", *, num_classes: int, multi_label: bool
) -> "Callable[[ResolvedPhase], nn.Module]":
    """Return a function that gives every phase the user's loss, after trying the loss on two images.

    Raises:
        UserError: The loss has parameters of its own, or does not take logits and targets.
    """
    import torch

    from finetune.training.losses import UserLoss

    name = type(loss).__name__
    if any(parameter.requires_grad for parameter in loss.parameters()):
        raise UserError(
            f"loss={name}: has parameters of its own, which would not train. Put them into the head, or set their "
            "requires_grad to False."
        )
    targets = torch.zeros(2, num_classes) if multi_label else torch.zeros(2, dtype=torch.int64)
    own = UserLoss(loss)
    rule = f"loss={name}: must take logits (B, {num_classes}) and targets {tuple(targets.shape)} of {targets.dtype}"
    with trying(rule, advice="Choose a loss that does."):
        own(torch.zeros(2, num_classes), targets)
    return lambda phase: own


def check_metrics(metrics: Mapping[str, Any], *, num_classes: int, multi_label: bool) -> None:
    """Try the user's metrics on two images, before a run begins.

    Raises:
        UserError: A metric does not take probabilities and targets.
    """
    import copy

    import torch

    probabilities_BK = torch.full((2, num_classes), 1 / num_classes)
    targets = torch.zeros(2, num_classes, dtype=torch.int64) if multi_label else torch.zeros(2, dtype=torch.int64)
    for name, metric in metrics.items():
        rule = (
            f"metrics[{name!r}]={type(metric).__name__}: must take probabilities (B, {num_classes}) and targets "
            f"{tuple(targets.shape)} of {targets.dtype}"
        )
        with trying(rule, advice="Choose a metric that does."):
            copy.deepcopy(metric).update(probabilities_BK, targets)


def transform_of(function: Callable[[Any], Any], spec: "InputSpec") -> "UserTransform":
    """Return a function of a training view as the transform of a run, after trying it on one view.

    Raises:
        UserError: It is not a function, or does not return uint8 of the same shape.
    """
    import torch

    from finetune.data.transforms import UserTransform

    if not callable(function):
        raise UserError(f"transform: must be a function of an image. It is {type_in_words(function)}.")
    # a later run cannot recognise the object, so its cached views get a key of their own
    transform = UserTransform(function=function, key={"object": uuid.uuid4().hex})
    with torch.random.fork_rng(devices=[]):
        transform(torch.zeros(spec.channels, *spec.size, dtype=torch.uint8))
    return transform


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
