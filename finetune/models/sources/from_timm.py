"""Builds any network of timm: stages from its own ``group_matcher``, input from its ``pretrained_cfg``."""

import inspect
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from finetune.errors import UserError, did_you_mean, first_line, shortened
from finetune.file_errors import out_of_memory
from finetune.models.backbone import PRESETS, Backbone
from finetune.models.hub import UnavailableError, hub_file
from finetune.models.library_input_spec import spec_from_timm
from finetune.models.modes import evaluating
from finetune.models.pooling import ClassTokenAndMean, GeneralisedMean
from finetune.models.pools import TIMM_POOLS
from finetune.models.sources.timm_chains import chain_of
from finetune.models.stages import StageMap, group_names, is_norm

log = logging.getLogger(__name__)

# The plain ResNets take torchvision's first ImageNet weights (V1, He et al.'s recipe) among those that timm has: later
# recipes with label smoothing, mixup and long training score higher on ImageNet, but their frozen features transfer
# worse (Kornblith et al. 2021, arXiv 2010.16402).
PRESET_TAG = "tv_in1k"


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
    return _backbone(net, name=name, kwargs=kwargs)


def _stage_map(net: Any) -> StageMap:
    order = group_with_matcher(net.named_parameters(), net.group_matcher(coarse=True), reverse=True)
    groups = [[key for key, group in order.items() if group == index] for index in sorted(set(order.values()))]
    groups = _with_last_norm_merged(net, groups)
    return StageMap(net, names=group_names(groups), groups=groups)


def _backbone(net: Any, *, name: str, kwargs: Mapping[str, Any]) -> Backbone:
    stage_map = _stage_map(net)
    chain = chain_of(net)
    first = net.pretrained_cfg["first_conv"]
    return Backbone(
        net,
        source="timm",
        name=name,
        kwargs=kwargs,
        stage_map=stage_map,
        num_features=int(getattr(net, "head_hidden_size", None) or net.num_features),
        input_spec=spec_from_timm(net.pretrained_cfg, img_size=kwargs.get("img_size")),
        first_convs=[first] if isinstance(first, str) else first,
        fixed_size=bool(net.pretrained_cfg.get("fixed_input_size")),
        steps=None if chain is None else stage_map.divide(net, chain),
    )


def resize(backbone: Backbone, size: tuple[int, int]) -> None:
    """Change a network that takes images of one size only to take another one; timm resamples its position tables.

    Args:
        backbone: Network of timm, changed in place.
        size: Height and width in pixels.

    Raises:
        UserError: The network can only be built for another size, or does not take this one.
    """
    net: Any = backbone.net
    spec = backbone.input_spec
    setting = f"input.size={list(size)}: {backbone.name} takes only {spec.size[0]}x{spec.size[1]} pixels"
    if not hasattr(net, "set_input_size"):
        raise UserError(f"{setting}. Leave input.size out, or build it with backbone.kwargs.img_size={list(size)}.")
    try:
        # timm's resampling of Swin's tables warns of the layout of its own tensors
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            net.set_input_size(img_size=size)
        with torch.no_grad(), evaluating(net):
            net(torch.zeros(1, len(spec.mean), *size, dtype=next(net.parameters()).dtype))
    except Exception as error:  # timm asserts, and its networks raise whatever their operations raise
        if out_of_memory(error):
            raise
        why = first_line(error, with_type=True).rstrip(".")
        raise UserError(f"{setting}, and cannot be changed to these: {why}. Choose another size.") from error
    backbone.input_spec = replace(spec, size=size)
    backbone.set_chain(chain_of(net))
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None) or size
    if seen := [max(step, side - side % step) for side, step in zip(size, patch, strict=True) if side % step]:
        log.warning(
            "input.size=%s: patches of %d pixels leave a margin at the right and bottom that %s does not see. Choose %s.",
            list(size),
            patch[0],
            backbone.name,
            " or ".join(str(side) for side in dict.fromkeys(seen)),
        )


def set_pool(backbone: Backbone, pool: str) -> None:
    """Change how a network pools its last map or tokens; nothing is changed where it pools so already.

    Args:
        backbone: Network of timm with its weights, changed in place. An attention pool that is not used any more is removed.
        pool: One of :data:`finetune.models.pools.POOLS`.

    Raises:
        UserError: The network cannot pool so; the message lists how it can.
    """
    net: Any = backbone.net
    kinds = (SelectAdaptivePool2d, GeneralisedMean)
    selectable = [(name, module) for name, module in net.named_modules() if isinstance(module, kinds)]
    own, possible = _pools_of(net, [module for _, module in selectable])
    if pool not in possible:
        raise UserError(
            f"backbone.pool={pool!r}: {backbone.name} cannot pool so. "
            + (f"It can by {' or '.join(possible)}." if possible else "It has a pooling of its own. Leave it out.")
        )
    now = backbone.pool or own
    if pool == now:
        return
    pooling: nn.Module | None = None
    if selectable:
        ((name, module),) = selectable
        net.set_submodule(name, _map_pool(module, pool))
    elif pool == "cls_mean":
        net.reset_classifier(0, "")
        pooling = ClassTokenAndMean(net.num_prefix_tokens)
    else:
        net.reset_classifier(0, TIMM_POOLS[pool])
    width = backbone.num_features // (2 if now == "cls_mean" else 1)
    backbone.set_pool(
        pool,
        stage_map=_stage_map(net),
        chain=chain_of(net),
        num_features=2 * width if pool == "cls_mean" else width,
        pooling=pooling,
    )


def _pools_of(net: Any, selectable: Sequence[nn.Module]) -> tuple[str | None, tuple[str, ...]]:
    """Return how a network pools, None for a way without a name, and all ways in which it can."""
    if len(selectable) == 1:
        kind = getattr(selectable[0], "pool_type", "gem")
        return {"avg": "mean", "fast": "mean", "fastavg": "mean", "gem": "gem"}.get(kind), ("mean", "gem")
    kind = getattr(net, "global_pool", None)
    if selectable or not isinstance(kind, str) or not hasattr(net, "num_prefix_tokens"):
        return None, ()
    # poolings of a family, and distilled networks, which always average the answers of two tokens
    if kind not in ("", *TIMM_POOLS.values()) or getattr(net, "dist_token", None) is not None:
        return None, ()
    own = next((name for name, timms in TIMM_POOLS.items() if timms == kind), None)
    # networks without a class token may have other tokens before the patches
    with_class = getattr(net, "cls_token", None) is not None
    possible = ("cls", "mean", "cls_mean") if with_class else ("mean",)
    return own, (*possible, "map") if kind == TIMM_POOLS["map"] else possible


def _map_pool(module: Any, pool: str) -> nn.Module:
    """Return a pooling of maps that takes and gives the same shapes as another one."""
    if isinstance(module, GeneralisedMean):
        form = "NHWC" if module.pixels == (1, 2) else "NCHW"
        return SelectAdaptivePool2d(pool_type="fast", flatten=not module.keep, input_fmt=form)
    pixels = (1, 2) if getattr(module.pool, "dim", None) == (1, 2) else (2, 3)
    return GeneralisedMean(pixels, keep=module(torch.zeros(1, 1, 1, 1)).ndim == 4)


def with_positions_resampled(net: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose position tables have the network's size, where timm can resample them; else as it is.

    What does not fit then is reported where the tensors are loaded.

    Args:
        net: Network of timm.
        state: Tensors under its names, trained at another size perhaps.
    """
    own = net.state_dict()
    if all(value.shape == own[key].shape for key, value in state.items() if key in own):
        return state
    resample = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if resample is None:
        return state
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            changed: dict[str, Tensor] = resample(dict(state), net)
    except Exception as error:  # tensors of any shape
        if out_of_memory(error):
            raise
        return state
    if any(value.shape != own[key].shape for key, value in changed.items() if key in own):
        return state
    # timm resamples the kernels of patches of another size too, which then compute something else
    if any(
        "patch_embed" in key and changed[key].numel() != state[key].numel() for key in changed.keys() & state.keys()
    ):
        return state
    if tables := [key for key in changed if key in state and changed[key].shape != state[key].shape]:
        log.info("position tables resampled to the size of the network: %s.", shortened(tables))
    return changed


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


def layout_arguments(backbone: Backbone) -> dict[str, Any] | None:
    """Return the arguments with which timm itself builds a network of this pooling; None if it has no such pooling."""
    if backbone.pool is None:
        return {}
    if backbone.pool not in TIMM_POOLS:
        return None
    arguments: dict[str, Any] = {"global_pool": TIMM_POOLS[backbone.pool]}
    # where its constructor puts the last norm depends on the pooling
    for name in {"fc_norm", "use_fc_norm"} & set(inspect.signature(type(backbone.net).__init__).parameters):
        arguments[name] = not isinstance(backbone.net.fc_norm, nn.Identity)
    return arguments


def network_alone(name: str, kwargs: Mapping[str, Any], channels: int, size: list[int], pool: str | None = None) -> Any:
    """Build the network with timm alone; an exported backbone is loaded into it where this package cannot be imported."""
    import timm

    net: Any = timm.create_model(name, num_classes=0, in_chans=channels, **kwargs)
    if net.pretrained_cfg.get("fixed_input_size") and hasattr(net, "set_input_size"):
        net.set_input_size(img_size=tuple(size))
    if pool is not None:
        # written out: the text of this function runs alone
        net.reset_classifier(0, {"cls": "token", "mean": "avg", "map": "map"}[pool])
    return net
