"""Builds networks of ``models/residual.py``: ``resnet18`` to ``resnet152``, and ``cifar_resnet{6n+2}`` for CIFAR."""

import re
from typing import Any

import torch
from torch import nn

from finetune.errors import UserError
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone
from finetune.models.hub import UnavailableError
from finetune.models.residual import ResidualNet, gate_names
from finetune.models.stages import StageMap, groups_by_prefix

# (block, blocks in each stage): He et al. 2015, table 1
IMAGENET: dict[str, dict[str, Any]] = {
    "resnet18": {"block": "basic", "layers": (2, 2, 2, 2)},
    "resnet34": {"block": "basic", "layers": (3, 4, 6, 3)},
    "resnet50": {"block": "bottleneck", "layers": (3, 4, 6, 3)},
    "resnet101": {"block": "bottleneck", "layers": (3, 4, 23, 3)},
    "resnet152": {"block": "bottleneck", "layers": (3, 8, 36, 3)},
}


def settings(name: str) -> dict[str, Any]:
    """Return the keywords of :class:`~finetune.models.residual.ResidualNet` that a name stands for.

    Raises:
        UserError: The name is unknown.

    >>> settings("cifar_resnet56")["layers"]
    (9, 9, 9)
    """
    if name in IMAGENET:
        return IMAGENET[name]
    match = re.fullmatch(r"cifar_resnet(\d+)", name)
    if match and int(match[1]) >= 8 and int(match[1]) % 6 == 2:
        blocks = (int(match[1]) - 2) // 6
        return {
            "block": "basic",
            "layers": (blocks,) * 3,
            "width": 16,
            "small_images": True,
            "shortcut": "zero_pad",
        }
    raise UserError(
        f"backbone.name={name!r}: not in the family. Names: {', '.join(IMAGENET)}, and cifar_resnet20, 32, 44, 56, 110 "
        "or any 6n + 2."
    )


def architecture(name: str, kwargs: dict[str, Any]) -> Backbone:
    """Build a network of residual blocks without classifier, with random weights.

    Args:
        name: Name that :func:`settings` knows.
        kwargs: Keywords of ``ResidualNet`` that override those of the name (``scaling``, ``activation``, ...).
    """
    net = ResidualNet(**{**settings(name), **kwargs}, num_classes=0)
    prefixes: dict[str, tuple[str, ...]] = {"stem": ("conv1.", "bn1.", "bias1.")}
    prefixes |= {stage: (f"{stage}.",) for stage in net.stages}
    prefixes[net.stages[-1]] += ("norm.", "bias2.")
    steps = {"stem": [net.get_submodule(key) for key in net.opening]}
    steps |= {stage: [net.get_submodule(stage)] for stage in net.stages}
    steps[net.stages[-1]] += [net.get_submodule(key) for key in net.closing] + [nn.Flatten(1)]
    if hasattr(net, "bias2"):
        steps[net.stages[-1]].append(net.bias2)
    return Backbone(
        net,
        source="residual",
        name=name,
        kwargs=kwargs,
        stage_map=StageMap(net, names=tuple(prefixes), groups=groups_by_prefix(net, prefixes)),
        num_features=net.num_features,
        input_spec=InputSpec(size=(32, 32), crop_pct=1.0) if name.startswith("cifar") else InputSpec(),
        first_convs=["conv1"],
        steps=steps,
        # a gate of 1 changes nothing, so weights that were trained without gates keep their function
        neutral={key: torch.ones_like(net.get_parameter(key).detach()) for key in gate_names(net)},
    )


def load_imagenet(backbone: Backbone, member: str | None = None) -> None:
    """Load torchvision's weights, whose tensor names these networks share.

    Raises:
        UnavailableError: The weights are neither cached nor reachable, or the network has no ImageNet weights.
        UserError: The weights do not fit the chosen blocks.
    """
    from finetune.models.sources import from_torchvision

    if backbone.name not in IMAGENET:
        raise UnavailableError("nothing: there are no ImageNet weights for CIFAR-style networks")
    from_torchvision.load_imagenet(backbone, member)


# no other library can build these networks, so an exported backbone is not compared
network_alone = None
