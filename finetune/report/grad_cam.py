"""Where the network looked: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) by Captum."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finetune.models.classifier import Classifier
from finetune.report.thumbnails import pixels_url

# a coarser map says nothing about places
_FEWEST_CELLS = 4
_SHOWN_PX = 160
# images that are looked at together: more would take more memory than training did
_TOGETHER = 4


@dataclass(frozen=True, kw_only=True)
class Where:
    """The feature map that is looked at.

    Args:
        layer: Module that gives it.
        stage: Stage that the module belongs to.
        size: Height and width of the map.
    """

    layer: nn.Module
    stage: str
    size: tuple[int, int]


def find_layer(classifier: Classifier, image_CHW: Tensor) -> Where | None:
    """The deepest module whose output is a map of at least four by four places; None where there is none.

    Networks that work on a row of tokens have no such map behind their first stage.

    Args:
        classifier: In evaluation mode.
        image_CHW: An image of its size.
    """
    stage_of = {id(module): stage for stage, inside in classifier.stage_modules().items() for module in inside}
    found: list[Where] = []
    height, width = image_CHW.shape[-2:]

    def look(module: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4 or min(output.shape[-2:]) < _FEWEST_CELLS:
            return
        h, w = output.shape[-2:]
        # some networks keep their channels last: their maps have not the shape of the image
        if abs(h * width - w * height) <= max(height, width):
            found.append(Where(layer=module, stage=stage_of[id(module)], size=(h, w)))

    hooks = [
        module.register_forward_hook(look) for module in classifier.backbone.net.modules() if id(module) in stage_of
    ]
    try:
        with torch.inference_mode():
            classifier(image_CHW[None])
    finally:
        for hook in hooks:
            hook.remove()
    deep = [where for where in found if where.stage != classifier.stages[0]]
    return deep[-1] if deep else None


def heat_maps(classifier: Classifier, where: Where, images_BCHW: Tensor, classes: list[int]) -> Tensor:
    """How much each place speaks for a class, from 0 to 1, (B, H, W) of the images' size.

    Args:
        classifier: In evaluation mode.
        where: As found by :func:`find_layer`.
        images_BCHW: ``uint8``.
        classes: One of each image.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    found = []
    with _graph_from(classifier, where.stage), _out_of_place(classifier), torch.enable_grad():
        for at in range(0, len(images_BCHW), _TOGETHER):
            images, targets = images_BCHW[at : at + _TOGETHER].float() / 255, classes[at : at + _TOGETHER]
            cams = LayerGradCam(classifier, where.layer).attribute(images, target=targets, relu_attributions=True)
            found.append(cams.detach())
    scaled_BHW: Tensor = LayerAttribution.interpolate(torch.cat(found), tuple(images_BCHW.shape[-2:]), "bilinear")[:, 0]
    return scaled_BHW / scaled_BHW.amax((1, 2), keepdim=True).clamp_min(1e-12)


@contextmanager
def _graph_from(classifier: Classifier, stage: str) -> Iterator[None]:
    """No graph of the stages before one: nobody asks for their gradients, and their activations are the large ones."""
    modules = classifier.stage_modules()
    before = classifier.stages[: classifier.stages.index(stage)]
    parameters = [p for name in before for module in modules[name] for p in module.parameters()]
    wanted = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(was)


@contextmanager
def _out_of_place(classifier: Classifier) -> Iterator[None]:
    """Activations that overwrite their input would overwrite the map that is looked at."""
    changed = [module for module in classifier.modules() if getattr(module, "inplace", False) is True]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]  # nn.Module types attributes as Tensor
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]


def overlay(image_CHW: Tensor, heat_HW: Tensor) -> tuple[str, str]:
    """The image as the network sees it, and the same with the heat over its grey, as data URLs of one size."""
    import matplotlib

    scale = max(1, _SHOWN_PX // max(image_CHW.shape[-2:]))
    colour = image_CHW.expand(3, -1, -1) if image_CHW.shape[0] == 1 else image_CHW
    pixels = colour.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    heat = heat_HW.numpy().repeat(scale, 0).repeat(scale, 1)[..., None]
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    hot = matplotlib.colormaps["inferno"](heat[..., 0])[..., :3] * 255
    mixed = grey * (1 - 0.65 * heat) + hot * 0.65 * heat
    return pixels_url(pixels), pixels_url(mixed.clip(0, 255).astype(np.uint8))
