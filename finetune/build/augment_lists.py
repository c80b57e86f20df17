"""Build the lists of operations that ``data.augment`` and the ``augment`` of phases name, and try each on the run's input."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.augment_settings import TORCHVISION, AugmentSettings, augment_settings
from finetune.build.user_objects import trying
from finetune.config.schema import Config
from finetune.config.trust import instantiate, objects_named
from finetune.errors import UserError, type_in_words

if TYPE_CHECKING:
    from finetune.data.transforms import AugmentList, UserTransform
    from finetune.input_spec import InputSpec

# operations, and arguments of ColorJitter, that do nothing to a grey picture
_COLOUR_ONLY = ("RandomGrayscale", "Grayscale", "RandomChannelPermutation", "RandomPhotometricDistort", "RGB")
_COLOUR_ARGUMENTS = ("saturation", "hue")
# random draws in which an operation must keep the size and type of the picture
_TRIES = 8


def build_augment_lists(config: Config, *, spec: "InputSpec", trusted: bool) -> "dict[str, AugmentList]":
    """Build every list of operations that a configuration names, by the text that names it in phases and plans.

    Presets are checked too, so that one that does not take the run's pictures is refused before the first phase.

    Args:
        config: Checked configuration.
        spec: Input of the network, on which each operation is tried.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise only operations of torchvision are
            built.

    Raises:
        UserError: An operation cannot be built, or one or a preset does not take the run's pictures.
    """
    from finetune.data.transforms import AugmentList, check_augment_channels

    for setting, settings in _augments(config).items():
        check_augment_channels(settings.base, channels=spec.channels, setting=setting)
    return {
        settings.text: AugmentList(
            base=settings.base, operations=_operations(settings, setting=setting, spec=spec, trusted=trusted)
        )
        for setting, settings in named_lists(config).items()
    }


def named_lists(config: Config) -> dict[str, AugmentSettings]:
    """Return the lists of operations of a configuration by the setting that names each."""
    return {key: settings for key, settings in _augments(config).items() if settings.nodes}


def _augments(config: Config) -> dict[str, AugmentSettings]:
    values = {"data.augment": config.data.augment, "schedule.augment": config.schedule.augment}
    values |= {f"schedule.phases[{n}].augment": phase.augment for n, phase in enumerate(config.schedule.phases)}
    return {key: augment_settings(value, setting=key) for key, value in values.items() if value is not None}


def _operations(
    settings: AugmentSettings, *, setting: str, spec: "InputSpec", trusted: bool
) -> "tuple[UserTransform, ...]":
    import torch

    from finetune.data.transforms import UserTransform
    from finetune.models.user_modules import code_digest

    own = [target for target in settings.targets() if not target.startswith(TORCHVISION)]
    code = code_digest(objects_named({"nodes": list(settings.nodes)}, trusted=trusted)) if own else None
    noise = torch.randint(
        0, 256, (spec.channels, *spec.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    operations = []
    for node in settings.nodes:
        name = str(node["_target_"]).removeprefix(TORCHVISION)
        where = f"{setting}: {name}"
        if spec.channels == 1:
            _refuse_colour(node, setting=setting)
        _must_exist(node, setting=setting)
        function = instantiate(node, trusted=trusted)
        if not callable(function):
            raise UserError(f"{where}: must build a function of an image. It built {type_in_words(function)}.")
        operation = UserTransform(function=function, key={"node": node, "code": code}, setting=where)
        with trying(f"{where}: must take uint8 {tuple(noise.shape)}", advice="Choose an operation that does."):
            for seed in range(_TRIES):
                torch.manual_seed(seed)
                operation(noise)
        operations.append(operation)
    return tuple(operations)


def _refuse_colour(node: Mapping[str, Any], *, setting: str) -> None:
    """Refuse operations that would silently do nothing to a grey picture."""
    name = str(node["_target_"]).removeprefix(TORCHVISION)
    given = [key for key in _COLOUR_ARGUMENTS if node.get(key)] if name == "ColorJitter" else []
    if name in _COLOUR_ONLY or given:
        what = f"{name} with {' and '.join(given)}" if given else name
        advice = "Give brightness and contrast only" if given else "Leave it out"
        raise UserError(
            f"{setting}: {what} changes colours only. The input of this run is grey. {advice}, or set input.channels=3."
        )
    for inner in node.get("transforms") or ():
        _refuse_colour(inner, setting=setting)


def _must_exist(node: Mapping[str, Any], *, setting: str) -> None:
    from torchvision.transforms import v2

    from finetune.errors import did_you_mean

    target = str(node["_target_"])
    name = target.removeprefix(TORCHVISION)
    if target.startswith(TORCHVISION) and "." not in name and not hasattr(v2, name):
        names = [known for known in dir(v2) if isinstance(getattr(v2, known), type)]
        raise UserError(
            f"{setting}: {name!r} is not an operation of torchvision.transforms.v2.{did_you_mean(name, names)} For an operation "
            "of your own give its _target_."
        )
    for inner in node.get("transforms") or ():
        _must_exist(inner, setting=setting)
