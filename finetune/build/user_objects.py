"""Build the user-supplied modules that a configuration names by class: a network, a head, a loss and a transform."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune.config.schema import Config
from finetune.config.trust import build_module, instantiate, module_node, objects_named
from finetune.errors import UserError, first_line, type_in_words
from finetune.file_errors import out_of_memory

if TYPE_CHECKING:  # imported where they are used: a wrong path must be answered before torch is loaded
    from torch import nn

    from finetune.data.transforms import UserTransform
    from finetune.input_spec import InputSpec
    from finetune.models.backbone import Backbone


def user_backbone(config: Config, *, input_spec: "InputSpec", trusted: bool) -> "Backbone":
    """Build the network that ``backbone._target_`` names, and load its weights.

    Args:
        config: Checked configuration with ``backbone._target_`` and ``backbone.stages``.
        input_spec: Input that the network takes.
        trusted: Whether the user typed the configuration, or trusts the run that it comes from.

    Raises:
        UserError: The class cannot be built, its stages do not cover its parameters, or its weights do not fit.
    """
    from finetune.models.build import load_own_weights
    from finetune.models.sources.from_own import IN_SETTINGS, backbone_of

    chosen = config.backbone
    assert chosen._target_ is not None
    node = module_node(chosen._target_, chosen.kwargs, trusted=trusted)
    net = _build_seeded(node, where="backbone", seed=config.seed, trusted=trusted)
    backbone = backbone_of(net, stages=chosen.stages, input_spec=input_spec, target=node, spelling=IN_SETTINGS)
    load_own_weights(backbone, chosen.weights)
    return backbone


def user_head(
    config: Config, *, num_features: int, num_classes: int, trusted: bool
) -> "tuple[nn.Module, Mapping[str, Any]]":
    """Build the head that ``head._target_`` names, with ``num_features`` and ``num_classes`` if its class takes them.

    Returns:
        The head, and the node that builds it again.

    Raises:
        UserError: The class cannot be built.
    """
    assert config.head._target_ is not None
    widths = {"num_features": num_features, "num_classes": num_classes}
    node = module_node(config.head._target_, config.head.kwargs, trusted=trusted, **widths)
    return _build_seeded(node, where="head", seed=config.seed, trusted=trusted), node


def user_modules(config: Config, model: Mapping[str, Any], *, trusted: bool) -> "dict[str, nn.Module]":
    """Build the user's modules of a resumed model, from the run's configuration.

    The nodes in the description of the model are not used: a run's configuration is checked against what the user typed or
    trusts, its description is not.

    Args:
        config: Configuration of the run.
        model: Checked description of the model.
        trusted: Whether the user typed the configuration, or trusts the run.

    Raises:
        UserError: A class cannot be built.
    """
    modules = {}
    if config.backbone._target_ is not None:
        node = module_node(config.backbone._target_, config.backbone.kwargs, trusted=trusted)
        modules["backbone"] = _build_seeded(node, where="backbone", seed=config.seed, trusted=trusted)
    if config.head._target_ is not None:
        widths = {key: model["head"][key] for key in ("num_features", "num_classes")}
        modules["head"], _ = user_head(config, **widths, trusted=trusted)
    return modules


def user_loss(config: Config, *, num_classes: int, multi_label: bool, trusted: bool) -> "nn.Module":
    """Build the loss that ``loss._target_`` names, as a loss of each image, and try it on two images.

    Raises:
        UserError: The class cannot be built, or does not take logits (B, K) and targets.
    """
    import torch

    from finetune.training.losses import UserLoss

    assert config.loss._target_ is not None
    node = module_node(config.loss._target_, config.loss.kwargs, trusted=trusted)
    loss = UserLoss(build_module(node, where="loss", trusted=trusted))
    targets = torch.zeros(2, num_classes) if multi_label else torch.zeros(2, dtype=torch.int64)
    dtype = str(targets.dtype).removeprefix("torch.")
    rule = f"must take logits (B, {num_classes}) and targets {tuple(targets.shape)} of {dtype}"
    with trying(f"loss._target_={config.loss._target_!r}: {rule}", advice="Choose a loss that does."):
        loss(torch.zeros(2, num_classes), targets)
    return loss


def user_transform(config: Config, *, spec: "InputSpec", trusted: bool) -> "UserTransform | None":
    """Build the transform that ``data.transform`` names, and try it on one view; None if it names none.

    Raises:
        UserError: The transform cannot be built, or does not return uint8 of the same shape.
    """
    node = config.data.transform
    if not node:
        return None
    import torch

    from finetune.data.transforms import UserTransform
    from finetune.models.user_modules import code_digest

    code = code_digest(objects_named(node, trusted=trusted))
    function = instantiate(node, trusted=trusted)
    if not callable(function):
        raise UserError(
            f"data.transform._target_={node['_target_']!r}: must build a function of an image. "
            f"It built {type_in_words(function)}."
        )
    transform = UserTransform(function=function, key={"node": dict(node), "code": code})
    view = torch.zeros(spec.channels, *spec.size, dtype=torch.uint8)
    rule = f"data.transform._target_={node['_target_']!r}: must take uint8 {tuple(view.shape)}"
    with trying(rule, advice="Choose a transform that does."):
        transform(view)
    return transform


@contextmanager
def trying(rule: str, *, advice: str) -> Iterator[None]:
    """Try the user's code in the block without a graph, and leave the global random state alone.

    Raises:
        UserError: The code raises an error; the message has the rule, the error and the advice.
    """
    import torch

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        if out_of_memory(error):
            raise
        why = first_line(error, with_type=True).rstrip(".")
        raise UserError(f"{rule}. {why}. {advice}") from error


def _build_seeded(node: Mapping[str, Any], *, where: str, seed: int, trusted: bool) -> "nn.Module":
    """Build a module whose random weights depend on the seed alone; leave the global random state as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_module(node, where=where, trusted=trusted)
