"""Describe, before a run starts, how images change on their way to the network: enlarged, cropped, reduced to a point."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune.config.schema import InputConfig
from finetune.data.evaluation_pixels import resize_target
from finetune.data.input_size import ENOUGH_PX
from finetune.input_spec import InputSpec
from finetune.models.adaptations import ADAPTATIONS, PRETRAINED_CHANNELS
from finetune.models.modes import evaluating

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier

# enlarging by less is common and costs little
_ENLARGED = 2.0
# the usual networks halve the image five times, so only below this size can a map become a single position
_SMALL_PX = 64


def input_lines(classifier: "Classifier", sizes: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the lines about the input: its size, the evaluation crop, an enlargement, and a last map of one position.

    Args:
        classifier: Network of the run.
        sizes: Smallest, median and largest width and height of the images in pixels.
    """
    spec = classifier.input_spec
    height, width = spec.size
    line = f"input: {height} x {width} pixels"
    if spec.crop_mode == "squash":
        line += ", into which whole images are squashed"
    elif spec.crop_pct < 1:
        line += (
            f"; evaluation keeps the centre {spec.crop_pct:.0%} of the shorter side (input.crop_pct=1 keeps all of it)"
        )
    lines = [f"{line}."]
    if (factor := enlargement(spec, width=sizes["width"][1], height=sizes["height"][1])) >= _ENLARGED:
        lines.append(
            f"input: the median image, {sizes['height'][1]} x {sizes['width'][1]} pixels, is enlarged {factor:.1f} times. "
            "A smaller input.size is faster; pretrained weights often work better at the larger one. Compare both."
        )
    if max(spec.size) <= _SMALL_PX and last_map(classifier) == (1, 1):
        lines.append(
            f"input: at this size the last feature map is 1 x 1, so the last stage has no spatial context. "
            f"input.size={max(ENOUGH_PX, 4 * height)} gives it some."
        )
    return lines


def unused_input(config: InputConfig, spec: InputSpec) -> list[str]:
    """Return a line for each setting of the input that has no effect on these images and this network.

    Args:
        config: Settings of the input.
        spec: The input as it is.

    >>> unused_input(InputConfig(adapt="fold"), InputSpec(channels=3))[0].partition(". ")[0]
    'input.adapt=fold: has no effect'
    """
    lines = []
    kind = ADAPTATIONS[config.adapt]
    if spec.channels == PRETRAINED_CHANNELS and kind.kernel is not None and not kind.is_new:
        lines.append(
            f"input.adapt={config.adapt}: has no effect. The images are read with {spec.channels} channels, as the stem was "
            "pretrained on. input.channels=1 reads them as grey."
        )
    if config.crop_pct is not None and spec.crop_mode == "squash":
        lines.append(
            f"input.crop_pct={config.crop_pct}: has no effect. input.crop_mode=squash shows whole images. "
            "input.crop_mode=center crops them."
        )
    return lines


def enlargement(spec: InputSpec, *, width: int, height: int) -> float:
    """Return the factor by which the evaluation view enlarges an image; below 1 it shrinks the image.

    >>> enlargement(InputSpec(size=(224, 224), crop_pct=1.0), width=28, height=56)
    8.0
    """
    target_height, target_width = resize_target(spec)
    return max(target_height / height, target_width / width)


@torch.no_grad()
def last_map(classifier: "Classifier") -> tuple[int, int] | None:
    """Return height and width of the last feature map of a spatial convolution, measured by a forward pass of one image.

    Returns:
        None for a network without convolutions.
    """
    spec = classifier.input_spec
    shapes: list[tuple[int, int]] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes.append((output.shape[-2], output.shape[-1]))

    # without those of 1 x 1, which squeeze-and-excitation applies to a pooled map
    spatial = [
        module
        for module in classifier.backbone.modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    ]
    hooks = [module.register_forward_hook(keep) for module in spatial]
    parameter = next(classifier.backbone.parameters())
    zeros = torch.zeros(1, spec.channels, *spec.size, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.random.fork_rng(devices=[]), evaluating(classifier):
            classifier.embed(zeros)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes[-1] if shapes else None
