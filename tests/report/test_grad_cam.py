"""Grad-CAM compared with the paper's formula, and the networks that it is available for."""

import pytest
import torch

from finetune.models.build import build_backbone
from finetune.models.classifier import build_classifier
from finetune.report.grad_cam import find_layer, heat_maps, overlay
from tests.export.trained import settled_classifier

# B = batch, C = channels, H/W = height/width


def pictures(size: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8, generator=generator)


def test_maps_are_those_of_the_formula() -> None:
    model = settled_classifier(name="resnet10t", size=(128, 128))
    images = pictures(128)
    where = find_layer(model, images[0])
    assert where is not None
    assert (where.stage, where.size) == ("layer4", (4, 4))
    with torch.inference_mode():
        targets = model(images).argmax(1).tolist()
    ours = heat_maps(model, where, images, targets)
    # a channel's weight is the mean of the class's gradient over the map (equation 1), and the heat map is the positive part of
    # the weighted sum (equation 2)
    kept: list[torch.Tensor] = []
    hook = where.layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(images.float() / 255)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, targets[0]] + logits[1, targets[1]], kept[0])
    cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    scaled = torch.nn.functional.interpolate(cam, (128, 128), mode="bilinear")[:, 0]
    assert (scaled.amax((1, 2)) > 0).all()
    expected = scaled / scaled.amax((1, 2), keepdim=True)
    torch.testing.assert_close(ours, expected.detach(), atol=1e-5, rtol=0)


def test_small_images_are_looked_at_in_an_earlier_stage() -> None:
    model = settled_classifier(name="resnet10t", size=(64, 64))
    where = find_layer(model, pictures(64)[0])
    assert where is not None
    assert (where.stage, where.size) == ("layer3", (4, 4))


@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_networks_without_a_map_are_told_so(name: str) -> None:
    size = 160 if name == "test_vit" else 8
    model = settled_classifier(name=name, size=(size, size))
    assert find_layer(model, pictures(size)[0]) is None


def test_activations_in_place_are_as_they_were_afterwards() -> None:
    model = settled_classifier(name="resnet10t", size=(64, 64))
    before = [getattr(module, "inplace", None) for module in model.modules()]
    assert True in before
    images = pictures(64)
    with torch.inference_mode():
        logits = model(images)
    where = find_layer(model, images[0])
    assert where is not None
    heat_maps(model, where, images, [0, 0])
    assert [getattr(module, "inplace", None) for module in model.modules()] == before
    with torch.inference_mode():
        assert torch.equal(model(images), logits)


def test_an_overlay_of_a_grey_image_is_a_pair_of_pictures() -> None:
    plain, hot = overlay(pictures(32, channels=1)[0], torch.rand(32, 32))
    assert plain != hot
    assert all(url.startswith("data:image/jpeg;base64,") for url in (plain, hot))


@pytest.mark.parametrize("size", [224, 448])
def test_weights_of_attention_are_no_maps(size: int) -> None:
    backbone = build_backbone(
        source="timm", name="swin_tiny_patch4_window7_224", weights="none", seed=0, depths=(1, 1, 1, 1), embed_dim=12
    )
    model = build_classifier(backbone=backbone, head={"name": "linear"}, classes=("a", "b"), size=(size, size)).eval()
    assert find_layer(model, pictures(size)[0]) is None
