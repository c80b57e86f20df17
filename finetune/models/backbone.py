"""Backbone: a pretrained network without its classifier, cut into named stages."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import UserError, did_you_mean
from finetune.input_spec import InputSpec
from finetune.models.channels import PRETRAINED_CHANNELS, adapt_stem
from finetune.models.hub import UnavailableError, hub_file
from finetune.models.stages import StageMap, group_names, groups_by_prefix
from finetune.models.weights import fit_state_dict, load_state_dict_file, read_metadata

# B = batch, S = input channels of the stem, H/W = image height/width, D = features

log = logging.getLogger(__name__)

RESNET_STAGES = {
    "stem": ("conv1.", "bn1."),
    "layer1": ("layer1.",),
    "layer2": ("layer2.",),
    "layer3": ("layer3.",),
    "layer4": ("layer4.",),
}
# The plain ResNets come through timm. Of the ImageNet weights it has, torchvision's first ones (V1, He et al.'s
# recipe) are taken: the later recipes with label smoothing, mixup and long training score higher on ImageNet, yet their
# frozen features transfer worse (Kornblith et al. 2021, arXiv 2010.16402).
PRESETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
PRESET_TAG = "tv_in1k"
OWNED_KEYS = ("num_classes", "in_chans", "pretrained", "weights")


class Backbone(nn.Module):
    """A network without its classifier: normalised images ``(B, S, H, W)`` to features ``(B, D)``.

    Args:
        net: The library's own network, its classifier removed.
        source: The library: ``timm`` or ``torchvision``.
        name: The network's name there.
        kwargs: What else its constructor was given; plain values.
        stage_map: Which stage each parameter and module is in.
        num_features: Length ``D`` of the features.
        input_spec: What the weights expect, for three channels.
        first_conv: Dotted name of the first convolution in ``net``.
        fixed_size: Whether the network takes images of ``input_spec.size`` only.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        source: str,
        name: str,
        kwargs: Mapping[str, Any],
        stage_map: StageMap,
        num_features: int,
        input_spec: InputSpec,
        first_conv: str,
        fixed_size: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.source = source
        self.name = name
        self.kwargs = dict(kwargs)
        self.num_features = num_features
        self.input_spec = input_spec
        self.first_conv = first_conv
        self.fixed_size = fixed_size
        self.adapted: tuple[int, str] | None = None
        self._stage_map = stage_map

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in order from the input, without ``head``."""
        return self._stage_map.names

    def stage_of(self, name: str) -> str:
        """The stage of a parameter or buffer, by its name in ``net``."""
        return self._stage_map.stage_of(name)

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """All modules of ``net`` by stage, each once; set their modes one by one, not recursively."""
        return self._stage_map.modules(self.net)

    def forward(self, images_BSHW: Tensor) -> Tensor:
        """Features ``(B, D)``."""
        features_BD: Tensor = self.net(images_BSHW)
        return features_BD

    def check_size(self, size: tuple[int, int] | None) -> None:
        """Whether the network takes images of this size.

        Raises:
            UserError: It takes one size only, and this is another.
        """
        if self.fixed_size and size is not None and size != self.input_spec.size:
            height, width = self.input_spec.size
            raise UserError(
                f"input.size={list(size)}: {self.name} was built for {height}x{width} pixels only. Leave input.size "
                f"out, or build it for another size with backbone.kwargs.img_size={list(size)}."
            )

    def adapt_input(self, *, channels: int, adapt: str, seed: int) -> None:
        """Change the first convolution in place to take images of another number of channels.

        Raises:
            UserError: The combination does not exist, or the stem was already adapted in another way.
        """
        if self.adapted is not None:
            if self.adapted != (channels, adapt):
                raise UserError(
                    f"input.adapt={adapt!r}: these weights have a stem made for input.channels={self.adapted[0]} "
                    f"input.adapt={self.adapted[1]}. Give these two, or weights with the stem of pretraining."
                )
            return
        conv = self.net.get_submodule(self.first_conv)
        assert isinstance(conv, nn.Conv2d)
        spec = self.input_spec
        adapt_stem(conv, channels=channels, adapt=adapt, mean=spec.mean, std=spec.std, seed=seed)
        if conv.in_channels != PRETRAINED_CHANNELS or adapt == "reinit":
            self.adapted = (channels, adapt)

    def describe(self) -> dict[str, Any]:
        """Plain JSON values from which :func:`backbone_from_description` builds the same architecture."""
        return {
            "source": self.source,
            "name": self.name,
            "kwargs": dict(self.kwargs),
            "input_spec": self.input_spec.to_dict(),
        }


def build_backbone(*, source: str, name: str, weights: str = "imagenet", seed: int = 0, **kwargs: Any) -> Backbone:
    """A network with its weights.

    Args:
        source: ``timm`` or ``torchvision``.
        name: The network's name there; for timm with or without a tag (``resnet50.a1_in1k``).
        weights: ``imagenet``, ``none`` (random, from ``seed``), or the path of a state dict in the network's layout.
        seed: For random weights: the same seed gives the same weights; the global random state is left alone.
        **kwargs: Further keywords of the network's constructor (``drop_path_rate``, ``img_size``, ...).

    Raises:
        UserError: An unknown source, name or keyword; weights that cannot be had, or that do not fit.
    """
    backbone = _architecture(source, name, kwargs, seed=seed)
    if weights == "none":
        log.info("backbone %s: random weights from seed %d.", name, seed)
        return backbone
    if weights == "imagenet":
        try:
            _PRETRAINED[source](backbone)
        except UnavailableError as tried:
            raise UserError(_no_weights(name, weights, tried)) from None
        return backbone
    _load_path(backbone, Path(weights))
    return backbone


def backbone_from_description(description: Mapping[str, Any]) -> Backbone:
    """The architecture of :meth:`Backbone.describe`, with random weights; nothing is downloaded."""
    backbone = _architecture(description["source"], description["name"], description["kwargs"], seed=0)
    backbone.input_spec = InputSpec.from_dict(description["input_spec"])
    return backbone


def _no_weights(name: str, weights: str, tried: UnavailableError) -> str:
    return (
        f"backbone.weights={weights!r}: no weights for {name!r} can be had here. Tried {tried}. Give one of: "
        "a file or folder (backbone.weights=PATH); the weights inside this package (backbone.weights=embedded); random "
        "weights (backbone.weights=none); or a cache filled elsewhere (HF_HOME, or TORCH_HOME for torchvision's)."
    )


def _architecture(source: str, name: str, kwargs: Mapping[str, Any], *, seed: int) -> Backbone:
    """The network with seeded random weights."""
    if source not in _SOURCES:
        raise UserError(
            f"backbone.source={source!r}: unknown. Sources: {', '.join(_SOURCES)}.{did_you_mean(source, _SOURCES)}"
        )
    for key in OWNED_KEYS:
        if key in kwargs:
            raise UserError(f"backbone.kwargs.{key}={kwargs[key]!r}: is set by finetune itself. Leave it out.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return _SOURCES[source](name, dict(kwargs))
        except TypeError as error:
            raise UserError(f"backbone.kwargs={dict(kwargs)}: {name} cannot be built with them. {error}.") from None


def _load_path(backbone: Backbone, path: Path) -> None:
    fit_state_dict(backbone.net, load_state_dict_file(path), origin=str(path))
    metadata = read_metadata(path) if path.suffix == ".safetensors" else None
    if metadata is not None and "input_spec" in metadata:
        backbone.input_spec = InputSpec.from_dict(metadata["input_spec"])


def _tagged(name: str) -> str:
    return f"{name}.{PRESET_TAG}" if name in PRESETS else name


def _timm_backbone(name: str, kwargs: dict[str, Any]) -> Backbone:
    import timm
    from timm.models._manipulate import group_with_matcher

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise UserError(f"backbone.name={name!r}: timm {timm.__version__} has no such network.{hint}")
    try:
        net: Any = timm.create_model(_tagged(name), pretrained=False, num_classes=0, **kwargs)
    except RuntimeError as error:  # timm's answer to an unknown tag
        tags = list(timm.list_pretrained(f"{architecture}.*"))
        raise UserError(f"backbone.name={name!r}: {error}.{did_you_mean(name, tags)}") from None
    order = group_with_matcher(net.named_parameters(), net.group_matcher(coarse=True), reverse=True)
    groups = [[key for key, group in order.items() if group == index] for index in sorted(set(order.values()))]
    cfg = net.pretrained_cfg
    return Backbone(
        net,
        source="timm",
        name=name,
        kwargs=kwargs,
        stage_map=StageMap(net, names=group_names(groups), groups=groups),
        num_features=getattr(net, "head_hidden_size", net.num_features),
        input_spec=_timm_input_spec(cfg, kwargs),
        first_conv=_first_conv(net),
        fixed_size=bool(cfg.get("fixed_input_size")),
    )


def _timm_input_spec(cfg: Mapping[str, Any], kwargs: Mapping[str, Any]) -> InputSpec:
    size = kwargs.get("img_size", cfg["input_size"][1:])
    return InputSpec(
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"] if cfg["interpolation"] in ("bicubic", "nearest") else "bilinear",
        crop_pct=cfg["crop_pct"],
        crop_mode="squash" if cfg.get("crop_mode") == "squash" else "center",
    )


def _first_conv(net: nn.Module) -> str:
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == PRETRAINED_CHANNELS:
            return str(name)
    raise UserError(f"backbone.name: {type(net).__name__} has no first convolution on three channels.")


def _timm_pretrained(backbone: Backbone) -> None:
    import timm

    cfg = backbone.net.pretrained_cfg
    assert isinstance(cfg, dict)
    if not (cfg.get("hf_hub_id") or cfg.get("url")):
        raise UnavailableError(f"timm {timm.__version__}, which knows no weights for it")
    overlay = None
    if cfg.get("hf_hub_id"):
        filename = cfg.get("hf_hub_filename")
        path = hub_file(cfg["hf_hub_id"], [filename] if filename else ["model.safetensors", "pytorch_model.bin"])
        overlay = {"file": str(path)}
    try:
        net = timm.create_model(
            _tagged(backbone.name), pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **backbone.kwargs
        )
    except OSError as error:
        raise UnavailableError(f"{cfg.get('url')} ({error})") from None
    backbone.net.load_state_dict(net.state_dict())
    log.info("backbone %s: ImageNet weights %s.", backbone.name, cfg.get("hf_hub_id") or cfg.get("url"))


def _torchvision_backbone(name: str, kwargs: dict[str, Any]) -> Backbone:
    from torchvision import models

    names = [key for key in models.list_models(models) if key.startswith(("resn", "wide_resn"))]
    if name not in names:
        raise UserError(
            f"backbone.name={name!r}: not one of torchvision's ResNets ({', '.join(names)}).{did_you_mean(name, names)}"
        )
    net = models.get_model(name, weights=None, **kwargs)
    num_features = net.fc.in_features
    net.fc = nn.Identity()
    return Backbone(
        net,
        source="torchvision",
        name=name,
        kwargs=kwargs,
        stage_map=StageMap(net, names=tuple(RESNET_STAGES), groups=groups_by_prefix(net, RESNET_STAGES)),
        num_features=num_features,
        input_spec=InputSpec(),
        first_conv="conv1",
    )


def _torchvision_pretrained(backbone: Backbone, member: str = "IMAGENET1K_V1") -> None:
    from torchvision import models

    enum = models.get_model_weights(backbone.name)
    if member not in enum.__members__:
        names = list(enum.__members__)
        raise UserError(
            f"backbone.weights={member!r}: torchvision has {', '.join(names)} for {backbone.name}."
            f"{did_you_mean(member, names)}"
        )
    weights = enum[member]
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise UnavailableError(f"{weights.url} ({error}) and torch's cache {torch.hub.get_dir()}/checkpoints") from None
    fit_state_dict(backbone.net, state, origin=str(weights))
    preset = weights.transforms()
    height = preset.crop_size[0]
    backbone.input_spec = replace(
        backbone.input_spec,
        size=(height, height),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_pct=height / preset.resize_size[0],
    )


_SOURCES: dict[str, Callable[[str, dict[str, Any]], Backbone]] = {
    "timm": _timm_backbone,
    "torchvision": _torchvision_backbone,
}
_PRETRAINED: dict[str, Callable[[Backbone], None]] = {
    "timm": _timm_pretrained,
    "torchvision": _torchvision_pretrained,
}
