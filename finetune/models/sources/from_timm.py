"""Builds any network of timm: stages from its own ``group_matcher``, input from its ``pretrained_cfg``."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models._manipulate import group_with_matcher
from torch import nn

from finetune.errors import UserError, did_you_mean, first_line
from finetune.file_errors import out_of_memory
from finetune.models.backbone import PRESETS, Backbone
from finetune.models.hub import UnavailableError, hub_file
from finetune.models.library_input_spec import spec_from_timm
from finetune.models.stages import StageMap, group_names, is_norm

log = logging.getLogger(__name__)

# The plain ResNets take torchvision's first ImageNet weights (V1, He et al.'s recipe) among those that timm has: later
# recipes with label smoothing, mixup and long training score higher on ImageNet, but their frozen features transfer
# worse (Kornblith et al. 2021, arXiv 2010.16402).
PRESET_TAG = "tv_in1k"

# Networks whose forward runs their children one after the other: the children before, inside and after the stages.
_CHAINS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "ResNet": (("conv1", "bn1", "act1", "maxpool"), ("layer1", "layer2", "layer3", "layer4"), ("global_pool", "fc")),
    "ResNetV2": (("stem",), ("stages",), ("norm", "head")),
    "ConvNeXt": (("stem",), ("stages",), ("norm_pre", "head")),
    "EfficientNet": (("conv_stem", "bn1"), ("blocks",), ("conv_head", "bn2", "global_pool", "classifier")),
}


def architecture(name: str, kwargs: dict[str, Any]) -> Backbone:
    """Build a timm network without classifier, with random weights.

    Raises:
        UserError: timm has no such network or tag, or does not define its stages.
    """
    family = name.partition(".")[0]
    if not timm.is_model(family):
        hint = did_you_mean(family, timm.list_models())
        raise UserError(f"backbone.name={name!r}: timm {timm.__version__} has no such network.{hint}")
    net = _create(name, kwargs)
    if not hasattr(net, "group_matcher"):
        raise UserError(f"backbone.name={name!r}: timm does not define its stages. Choose another network.")
    order = group_with_matcher(net.named_parameters(), net.group_matcher(coarse=True), reverse=True)
    groups = [[key for key, group in order.items() if group == index] for index in sorted(set(order.values()))]
    groups = _with_last_norm_merged(net, groups)
    names = group_names(groups)
    first = net.pretrained_cfg["first_conv"]
    return Backbone(
        net,
        source="timm",
        name=name,
        kwargs=kwargs,
        stage_map=StageMap(net, names=names, groups=groups),
        num_features=int(getattr(net, "head_hidden_size", None) or net.num_features),
        input_spec=spec_from_timm(net.pretrained_cfg, img_size=kwargs.get("img_size")),
        first_convs=[first] if isinstance(first, str) else first,
        fixed_size=bool(net.pretrained_cfg.get("fixed_input_size")),
        steps=_steps(net, names),
    )


def load_imagenet(backbone: Backbone, member: str | None = None) -> None:
    """Load the weights of the network's tag (timm's default if the name has none), with timm's own loader.

    Raises:
        UnavailableError: The weights are neither cached nor reachable, or do not exist.
        UserError: ``member`` is given: with timm the tag is part of ``backbone.name``.
    """
    if member is not None:
        tags = timm.list_pretrained(f"{backbone.name.partition('.')[0]}.*")
        raise UserError(
            f"backbone.weights={member!r}: with timm the weights are chosen by the tag in backbone.name. "
            f"Tags: {', '.join(tags) or 'none'}."
        )
    net: Any = backbone.net
    cfg = net.pretrained_cfg
    if not (cfg.get("hf_hub_id") or cfg.get("url")):
        raise UnavailableError(f"timm {timm.__version__}, which has no weights for it")
    overlay = None
    if cfg.get("hf_hub_id"):
        names = [cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else ["model.safetensors", "pytorch_model.bin"]
        overlay = {"file": str(hub_file(cfg["hf_hub_id"], names))}
    try:
        loaded = _create(backbone.name, backbone.kwargs, pretrained=True, pretrained_cfg_overlay=overlay)
    except OSError as error:
        raise UnavailableError(f"{cfg.get('url')} ({error})") from None
    except (SafetensorError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        place = overlay["file"] if overlay else cfg.get("url")
        reason = first_line(error)
        raise UnavailableError(f"{place}, which is damaged or does not fit these backbone.kwargs ({reason})") from None
    net.load_state_dict(loaded.state_dict())
    log.info("backbone %s: ImageNet weights %s.", backbone.name, cfg.get("hf_hub_id") or cfg.get("url"))


def pretrained_cfg(name: str) -> Any:
    """Return timm's description of the weights of a network's tag (timm's default if the name has none)."""
    return timm.get_pretrained_cfg(_tagged(name))


def _tagged(name: str) -> str:
    return f"{name}.{PRESET_TAG}" if name in PRESETS else name


def _create(name: str, kwargs: Mapping[str, Any], **more: Any) -> Any:
    try:
        return timm.create_model(_tagged(name), num_classes=0, **kwargs, **more)
    except RuntimeError as error:  # an unknown tag
        if out_of_memory(error):
            raise
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise UserError(f"backbone.name={name!r}: {error}.{did_you_mean(name, tags)}") from None


def _with_last_norm_merged(net: nn.Module, groups: list[list[str]]) -> list[list[str]]:
    """Merge a last group of normalisation layers alone into the stage before it, as timm itself does for its ViTs.

    By itself it would be the first stage to unfreeze, and a phase would train a thousandth of the network.
    """
    owners = [net.get_submodule(name.rpartition(".")[0]) for name in groups[-1]]
    if len(groups) > 1 and all(is_norm(owner) for owner in owners):
        return [*groups[:-2], groups[-2] + groups[-1]]
    return groups


def _steps(net: Any, names: Sequence[str]) -> dict[str, list[nn.Module]] | None:
    """Return the network as a chain of modules by stage, or None if it is not a chain."""
    chain = _CHAINS.get(type(net).__name__)
    # timm applies this dropout as a function between two children
    if chain is None or net.__dict__.get("drop_rate"):
        return None
    before, middle, after = chain
    stages: list[nn.Module] = []
    for key in middle:
        child = getattr(net, key)
        stages += list(child) if key in ("stages", "blocks") else [child]
    steps = {names[0]: [getattr(net, key) for key in before]}
    steps |= {name: [module] for name, module in zip(names[1:], stages, strict=False)}
    if set(steps) == set(names):
        steps[names[-1]] += [getattr(net, key) for key in after]
    elif len(steps) + 1 == len(names):
        steps[names[-1]] = [getattr(net, key) for key in after]
    else:
        return None
    return steps


def network_alone(name: str, kwargs: Mapping[str, Any], channels: int) -> Any:
    """Build the network with timm alone; an exported backbone is loaded into it where this package cannot be imported."""
    import timm

    return timm.create_model(name, num_classes=0, in_chans=channels, **kwargs)
