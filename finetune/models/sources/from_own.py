"""Make a backbone of a user-supplied module, divided into stages by the names of its child modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.errors import UserError, did_you_mean, shortened
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone
from finetune.models.channels import stem_channels
from finetune.models.pooling import AveragePool
from finetune.models.stages import StageMap, groups_by_prefix
from finetune.models.user_modules import OWN, class_name, forward_zeros

# B = batch, S = input channels, H/W = image height/width, D = features, h/w = height/width of a feature map

# stage names with another meaning in a schedule
_RESERVED = ("head", "all", "last")


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How the messages about a user-supplied network spell what its user gave.

    Args:
        stages: The stages.
        input_advice: The way to give its input, after "Correct it, or".
    """

    stages: str
    input_advice: str


IN_PYTHON = Spelling(
    stages="stages", input_advice="give input_spec= with the size that it takes, and a mean and std for each channel"
)
IN_SETTINGS = Spelling(
    stages="backbone.stages",
    input_advice="give input.size, and input.mean and input.std with a number for each channel",
)


def backbone_of(
    net: nn.Module,
    *,
    stages: Mapping[str, Sequence[str]] | None,
    input_spec: InputSpec | None = None,
    target: Mapping[str, Any] | None = None,
    adapted: tuple[int, str] | None = None,
    spelling: Spelling = IN_PYTHON,
) -> Backbone:
    """Make a backbone of a module that maps images ``(B, S, H, W)`` to features ``(B, D)`` or maps ``(B, D, h, w)``.

    Maps are averaged over their pixels. Only an ``nn.Sequential`` whose stages follow one another can be cut inside, for the
    cache of a frozen prefix; any other module can only be cut after its last stage.

    Args:
        net: Network without classifier; it is used as it is, with its weights.
        stages: Child modules (or parameters) of each stage, by dotted name, in order from the input. Together they hold
            every parameter once; children without parameters may be left out.
        input_spec: Input that the weights expect; its ``mean`` and ``std`` have one number for each input channel of the
            network. None: 224 x 224 pixels, three channels, ImageNet's mean and standard deviation.
        target: Node that built the module, for a module that a configuration named; None for an object.
        adapted: Channels and adaptation that its stem may have been changed to already, in place; a stem that takes the number of
            channels of ``input_spec`` has not been.
        spelling: How messages spell the arguments.

    Raises:
        UserError: The stages do not cover the parameters exactly once, a name is unknown or reserved, or the module does
            not take such images.
    """
    spec = input_spec or InputSpec()
    name = class_name(net)
    convolutions = [key for key, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    if adapted is not None and not _is_adapted(net, convolutions[:1], spec=spec, adapted=adapted):
        adapted = None
    channels = len(spec.mean) if adapted is None else stem_channels(channels=adapted[0], adapt=adapted[1])
    shape = (2, channels, *spec.size)
    num_features, pools = _features(net, shape, advice=f"Correct it, or {spelling.input_advice}")
    names = _checked_stages(net, stages, setting=spelling.stages)
    prefixes = {stage: tuple(f"{child}." for child in children) for stage, children in names.items()}
    kwargs: dict[str, Any] = {"stages": {stage: list(children) for stage, children in names.items()}}
    backbone = Backbone(
        net,
        source=OWN,
        name=name,
        kwargs=kwargs if target is None else {**kwargs, "target": dict(target)},
        stage_map=StageMap(net, names=tuple(names), groups=groups_by_prefix(net, prefixes)),
        num_features=num_features,
        input_spec=spec,
        first_convs=convolutions[:1],
        steps=_steps(net, names),
        pooling=AveragePool() if pools else None,
    )
    backbone.adapted = adapted
    return backbone


def _is_adapted(net: nn.Module, first_convs: Sequence[str], *, spec: InputSpec, adapted: tuple[int, str]) -> bool:
    """Tell whether a stem takes the number of channels that an adaptation gives it, and not that of its weights."""
    wanted = stem_channels(channels=adapted[0], adapt=adapted[1])
    stems = [net.get_submodule(name) for name in first_convs]
    return wanted != len(spec.mean) and any(
        isinstance(stem, nn.Conv2d) and stem.in_channels == wanted for stem in stems
    )


def _features(net: nn.Module, shape: tuple[int, int, int, int], *, advice: str) -> tuple[int, bool]:
    """Return the number of features of a network, and whether it ends in maps."""
    rule = (
        f"backbone: {class_name(net)} must map images (B, {shape[1]}, H, W) to features (B, D) or maps (B, D, h, w). "
        f"A forward pass of zeros {shape}"
    )
    output = forward_zeros(net, shape, rule=rule, advice=advice)
    if output.ndim not in (2, 4) or len(output) != 2:
        raise UserError(f"{rule} gave {tuple(output.shape)}. {advice}.")
    return output.shape[1], output.ndim == 4


def _checked_stages(
    net: nn.Module, stages: Mapping[str, Sequence[str]] | None, *, setting: str
) -> dict[str, tuple[str, ...]]:
    """Return the stages, or raise an error with every mistake in them."""
    children = [name for name, child in net.named_children() if next(child.parameters(), None) is not None]
    children += [name for name, _ in net.named_parameters(recurse=False)]
    if not stages:
        raise UserError(
            f"{setting}: must be given for a network of your own. The children of {class_name(net)} with parameters: "
            f"{', '.join(children) or 'none'}. Give {setting}={{'stem': [...], 'layer1': [...]}}, in order from the input."
        )
    known = [name for name, _ in net.named_modules() if name] + [name for name, _ in net.named_parameters()]
    problems = []
    for stage, members in stages.items():
        if isinstance(members, str) or not all(isinstance(member, str) for member in members):
            raise UserError(f"{setting}[{stage!r}]={members!r}: must be a list of names of child modules.")
        if not isinstance(stage, str) or not stage or stage in _RESERVED:
            problems.append(
                f"{setting}[{stage!r}]: not a name for a stage. {', '.join(_RESERVED)} have another meaning."
            )
        problems += [
            f"{setting}[{stage!r}]: {member!r} is not a module of {class_name(net)}.{did_you_mean(member, known)}"
            for member in members
            if member not in known
        ]
    owners: dict[str, list[str]] = {
        name: [stage for stage, members in stages.items() for member in members if f"{name}.".startswith(f"{member}.")]
        for name, _ in net.named_parameters()
    }
    uncovered = [name for name, found in owners.items() if not found]
    doubled = [f"{name} (in {' and '.join(found)})" for name, found in owners.items() if len(found) > 1]
    empty = [stage for stage in stages if not any(stage in found for found in owners.values())]
    if uncovered:
        problems.append(
            f"{setting}: every parameter must be in a stage. In none: {shortened(uncovered)}. "
            "Add the modules that own them to a stage."
        )
    if doubled:
        problems.append(f"{setting}: every parameter must be in one stage. In two: {shortened(doubled)}.")
    if empty and not problems:
        problems.append(
            f"{setting}: every stage must have a parameter. Without any: {shortened(empty)}. Leave them out."
        )
    if problems:
        raise UserError("\n".join(problems))
    return {stage: tuple(members) for stage, members in stages.items()}


def _steps(net: nn.Module, stages: Mapping[str, Sequence[str]]) -> dict[str, list[nn.Module]] | None:
    """Return an ``nn.Sequential`` as a chain of modules by stage; None if it is not one, or its stages do not follow it."""
    if type(net) is not nn.Sequential or net._forward_hooks or net._forward_pre_hooks:
        return None
    names = list(stages)
    steps: dict[str, list[nn.Module]] = {name: [] for name in names}
    position = 0
    # the children as the network runs them: `named_children` leaves out one that comes a second time
    for key, module in net._modules.items():
        assert module is not None, "the network has run"
        found = [number for number, name in enumerate(names) if key in stages[name]]
        if not found and next(module.parameters(), None) is not None:
            return None  # the stages divide the inside of a child
        # a child without parameters goes with the one before it
        number = found[0] if found else position
        if number < position:
            return None
        position = number
        steps[names[position]].append(module)
    return steps
