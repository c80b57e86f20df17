"""Grad-CAM heat maps of where the network looked (Selvaraju et al. 2017, arXiv 1610.02391), computed by Captum."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetune.models.classifier import Classifier
from finetune.report.thumbnails import pixels_url, shown_channels

# a coarser map has no useful spatial resolution
_FEWEST_CELLS = 4
_SHOWN_PX = 160
# images per batch: more would take more memory than training did
_TOGETHER = 4


@dataclass(frozen=True, kw_only=True)
class Where:
    """The feature map to explain.

    Args:
        layer: Module whose output is the map.
        stage: Stage that the module belongs to.
        size: Height and width of the map.
    """

    layer: nn.Module
    stage: str
    size: tuple[int, int]


def find_layer(classifier: Classifier, image_CHW: Tensor) -> Where | None:
    """Return the deepest module whose output is a map of at least four by four cells, or None.

    Networks that work on a sequence of tokens have no such map after their first stage.

    Args:
        classifier: Trained model in evaluation mode.
        image_CHW: One image of the model's input size.
    """
    stage_of = {id(module): stage for stage, inside in classifier.stage_modules().items() for module in inside}
    for module in classifier.backbone.net.modules():
        if "attention" in type(module).__name__.lower():
            # its weights are maps too, of tokens by tokens
            for inside in module.modules():
                stage_of.pop(id(inside), None)
    candidates: list[Where] = []
    calls: Counter[nn.Module] = Counter()
    height, width = image_CHW.shape[-2:]

    def look(module: nn.Module, inputs: object, output: object) -> None:
        calls[module] += 1
        if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != 1:
            return
        if min(output.shape[-2:]) < _FEWEST_CELLS:
            return
        h, w = output.shape[-2:]
        # some networks keep their channels last: the shape of their maps does not match the image's
        if abs(h * width - w * height) <= max(height, width):
            candidates.append(Where(layer=module, stage=stage_of[id(module)], size=(h, w)))

    hooks = [
        module.register_forward_hook(look) for module in classifier.backbone.net.modules() if id(module) in stage_of
    ]
    try:
        with torch.inference_mode():
            classifier(image_CHW[None])
    finally:
        for hook in hooks:
            hook.remove()
    # of a module that runs several times the gradient would be that of another map
    deep = [where for where in candidates if where.stage != classifier.stages[0] and calls[where.layer] == 1]
    return deep[-1] if deep else None


def heat_maps(classifier: Classifier, where: Where, images_BCHW: Tensor, classes: list[int]) -> Tensor:
    """Compute how much each place supports a class, from 0 to 1, (B, H, W) at the images' size.

    Args:
        classifier: Trained model in evaluation mode.
        where: Layer from :func:`find_layer`.
        images_BCHW: Images, ``uint8``.
        classes: One class index per image.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    maps = []
    with _graph_from(classifier, where.stage), _out_of_place(classifier), torch.enable_grad():
        for at in range(0, len(images_BCHW), _TOGETHER):
            images, targets = images_BCHW[at : at + _TOGETHER].float() / 255, classes[at : at + _TOGETHER]
            cams = LayerGradCam(classifier, where.layer).attribute(images, target=targets, relu_attributions=True)
            maps.append(cams.detach())
    scaled_BHW: Tensor = LayerAttribution.interpolate(torch.cat(maps), tuple(images_BCHW.shape[-2:]), "bilinear")[:, 0]
    return scaled_BHW / scaled_BHW.amax((1, 2), keepdim=True).clamp_min(1e-12)


@contextmanager
def _graph_from(classifier: Classifier, stage: str) -> Iterator[None]:
    """Build no graph for the stages before ``stage``: their gradients are not needed, and their activations are the largest."""
    modules = classifier.stage_modules()
    before = classifier.stages[: classifier.stages.index(stage)]
    parameters = [p for name in before for module in modules[name] for p in module.parameters()]
    required_grad = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was in zip(parameters, required_grad, strict=True):
            parameter.requires_grad_(was)


@contextmanager
def _out_of_place(classifier: Classifier) -> Iterator[None]:
    """Disable in-place activations, which would overwrite the map to explain."""
    changed = [module for module in classifier.modules() if getattr(module, "inplace", False) is True]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]  # nn.Module types attributes as Tensor
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]


def overlay(image_CHW: Tensor, heat_HW: Tensor) -> tuple[str, str]:
    """Return the image as the network sees it, and its grey version overlaid with the heat, as data URLs of equal size."""
    import matplotlib

    scale = max(1, _SHOWN_PX // max(image_CHW.shape[-2:]))
    pixels = shown_channels(image_CHW).expand(3, -1, -1).permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    heat = heat_HW.numpy().repeat(scale, 0).repeat(scale, 1)[..., None]
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    hot = matplotlib.colormaps["inferno"](heat[..., 0])[..., :3] * 255
    mixed = grey * (1 - 0.65 * heat) + hot * 0.65 * heat
    return pixels_url(pixels), pixels_url(mixed.clip(0, 255).astype(np.uint8))
