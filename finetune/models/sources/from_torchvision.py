"""Builds torchvision's ResNet, Wide-ResNet and ResNeXt, with the weights of its enums."""

import logging
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torchvision import models

from finetune.errors import UserError, did_you_mean
from finetune.file_errors import out_of_memory
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone
from finetune.models.hub import UnavailableError
from finetune.models.stages import RESNET_STAGES, StageMap, groups_by_prefix
from finetune.models.weights import fit_state_dict

log = logging.getLogger(__name__)

DEFAULT_MEMBER = "IMAGENET1K_V1"  # why V1: see PRESET_TAG in from_timm.py


def architecture(name: str, kwargs: dict[str, Any]) -> Backbone:
    """Build a torchvision network without classifier, with random weights.

    Raises:
        UserError: torchvision has no such ResNet.
    """
    names = [key for key in models.list_models(module=models) if key.startswith(("resnet", "resnext", "wide_resnet"))]
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
        first_convs=["conv1"],
        steps={
            "stem": [net.conv1, net.bn1, net.relu, net.maxpool],
            "layer1": [net.layer1],
            "layer2": [net.layer2],
            "layer3": [net.layer3],
            "layer4": [net.layer4, net.avgpool, nn.Flatten(1)],
        },
    )


def load_imagenet(backbone: Backbone, member: str | None = None) -> None:
    """Load weights of torchvision's enum with its own loader, which checks the hash in their file name.

    Raises:
        UnavailableError: The weights are neither cached nor reachable.
        UserError: The enum has no such member.
    """
    enum = models.get_model_weights(backbone.name)
    names = list(enum.__members__)
    member_name = member or (DEFAULT_MEMBER if DEFAULT_MEMBER in names else names[0])
    if member_name not in names:
        raise UserError(
            f"backbone.weights={member_name!r}: torchvision has {', '.join(names)} for {backbone.name}."
            f"{did_you_mean(member_name, names)}"
        )
    weights = enum[member_name]
    try:
        # the default of torch's loader would execute what it downloads
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise UnavailableError(f"torch's cache {torch.hub.get_dir()}/checkpoints and {weights.url} ({error})") from None
    except (RuntimeError, UnpicklingError, EOFError) as error:  # wrong hash, or a truncated file
        if out_of_memory(error):
            raise
        raise UnavailableError(f"{torch.hub.get_dir()}/checkpoints, where {weights.url} is damaged ({error})") from None
    fit_state_dict(backbone.net, state, origin=str(weights), neutral=backbone.neutral)
    preset = weights.transforms()
    backbone.input_spec = InputSpec(
        size=(preset.crop_size[0], preset.crop_size[0]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_pct=preset.crop_size[0] / preset.resize_size[0],
    )
    log.info("backbone %s: %s.", backbone.name, weights)


def network_alone(name: str, kwargs: Mapping[str, Any], channels: int, size: list[int]) -> Any:
    """Build the network with torchvision alone; an exported backbone is loaded into it where this package cannot be imported."""
    import torch
    import torchvision

    net = torchvision.models.get_model(name, **kwargs)
    net.fc = torch.nn.Identity()
    first = net.conv1
    if first.in_channels != channels:
        kept = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
        net.conv1 = torch.nn.Conv2d(channels, first.out_channels, bias=False, **kept)
    return net
