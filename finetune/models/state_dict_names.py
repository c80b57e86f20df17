"""Converts between the two naming schemes of a ResNet's tensors: torchvision's (also timm's) and transformers'."""

import re
from collections.abc import Mapping

from torch import Tensor

_PARTS = {"convolution": "conv", "normalization": "bn"}
_TO_TRANSFORMERS = {part: word for word, part in _PARTS.items()}
_STEM = re.compile(r"embedder\.embedder\.(convolution|normalization)\.(\w+)$")
_BRANCH = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.(convolution|normalization)\.(\w+)$")
_SHORTCUT = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)$")


def is_transformers_layout(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the tensors are named as in transformers' ResNet."""
    return "embedder.embedder.convolution.weight" in state


def torchvision_name(name: str) -> str:
    """Return the torchvision name of a tensor of transformers' ResNet; return other names unchanged.

    >>> torchvision_name("encoder.stages.0.layers.1.layer.2.normalization.weight")
    'layer1.1.bn3.weight'
    >>> torchvision_name("classifier.1.bias")
    'fc.bias'
    """
    if match := _STEM.match(name):
        return f"{_PARTS[match[1]]}1.{match[2]}"
    if match := _BRANCH.match(name):
        stage, block, layer, part, leaf = match.groups()
        return f"layer{int(stage) + 1}.{block}.{_PARTS[part]}{int(layer) + 1}.{leaf}"
    if match := _SHORTCUT.match(name):
        stage, block, part, leaf = match.groups()
        return f"layer{int(stage) + 1}.{block}.downsample.{int(part == 'normalization')}.{leaf}"
    return name.replace("classifier.1.", "fc.")


def transformers_name(name: str) -> str:
    """Return the transformers name of a tensor of torchvision's ResNet, the inverse of :func:`torchvision_name`.

    >>> transformers_name("layer1.0.downsample.0.weight")
    'encoder.stages.0.layers.0.shortcut.convolution.weight'
    """
    if match := re.match(r"(conv|bn)1\.(\w+)$", name):
        return f"embedder.embedder.{_TO_TRANSFORMERS[match[1]]}.{match[2]}"
    if match := re.match(r"layer(\d+)\.(\d+)\.(conv|bn)(\d)\.(\w+)$", name):
        stage, block, part, layer, leaf = match.groups()
        word = _TO_TRANSFORMERS[part]
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(layer) - 1}.{word}.{leaf}"
    if match := re.match(r"layer(\d+)\.(\d+)\.downsample\.([01])\.(\w+)$", name):
        stage, block, part, leaf = match.groups()
        word = ("convolution", "normalization")[int(part)]
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.shortcut.{word}.{leaf}"
    return re.sub(r"^fc\.", "classifier.1.", name)


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a ResNet's state dict to torchvision's names."""
    return {torchvision_name(name): tensor for name, tensor in state.items()}


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a ResNet's state dict to transformers' names."""
    return {transformers_name(name): tensor for name, tensor in state.items()}
