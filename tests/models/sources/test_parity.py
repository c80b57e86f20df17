"""Weights that a library made and saved, loaded here, give that library's own features bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.models.build import build_backbone
from finetune.models.residual import ResidualNet
from finetune.models.sources.from_residual import settings

Settle = Callable[[nn.Module], nn.Module]
IMAGES_BCHW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
PLAIN = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def torchvision_net(name: str, settled: Settle) -> Any:
    torch.manual_seed(0)
    return settled(torchvision.models.get_model(name, weights=None))


def torchvision_features(net: Any, images_BCHW: Tensor) -> Tensor:
    head, net.fc = net.fc, nn.Identity()
    features_BD: Tensor = net(images_BCHW)
    net.fc = head
    return features_BD


@torch.no_grad()
@pytest.mark.parametrize("name", [*PLAIN, "wide_resnet50_2", "resnext50_32x4d"])
def test_torchvision(name: str, tmp_path: Path, settled: Settle) -> None:
    net = torchvision_net(name, settled)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    ours = build_backbone(source="torchvision", name=name, weights=str(tmp_path / "weights.pth")).eval()
    assert torch.equal(ours(IMAGES_BCHW), torchvision_features(net, IMAGES_BCHW))


@torch.no_grad()
@pytest.mark.parametrize("name", PLAIN)
def test_our_own_blocks_give_the_logits_of_torchvision(name: str, settled: Settle) -> None:
    net = torchvision_net(name, settled)
    ours = ResidualNet(**settings(name)).eval()
    ours.load_state_dict(net.state_dict())
    assert torch.equal(ours(IMAGES_BCHW), net(IMAGES_BCHW))


TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet50.a1_in1k": {},
    "resnet50d": {},
    "seresnet50": {},
    "resnetv2_50": {},
    "convnext_tiny": {},
    "efficientnet_b0": {},
    "vit_small_patch16_224": {"img_size": 64},
}


@torch.no_grad()
@pytest.mark.parametrize("name", list(TIMM))
def test_timm(name: str, tmp_path: Path, settled: Settle) -> None:
    torch.manual_seed(0)
    net: Any = settled(timm.create_model(name, **TIMM[name]))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    path = str(tmp_path / "model.safetensors")
    ours = build_backbone(source="timm", name=name, weights=path, **TIMM[name]).eval()
    assert torch.equal(ours(IMAGES_BCHW), net.forward_head(net.forward_features(IMAGES_BCHW), pre_logits=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ["microsoft/resnet-18", "microsoft/resnet-50"])
def test_transformers(name: str, tmp_path: Path, settled: Settle) -> None:
    torch.manual_seed(0)
    kwargs = build_backbone(source="transformers", name=name, weights="none").kwargs
    net: Any = settled(transformers.ResNetForImageClassification(transformers.ResNetConfig(**kwargs, num_labels=7)))
    net.save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(
        size={"shortest_edge": 96}, crop_pct=0.75, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(tmp_path)
    ours = build_backbone(source="transformers", name=str(tmp_path), weights="imagenet").eval()
    assert torch.equal(ours(IMAGES_BCHW), net.resnet(IMAGES_BCHW).pooler_output.flatten(1))
    assert (ours.input_spec.size, ours.input_spec.crop_pct, ours.input_spec.mean) == ((96, 96), 0.75, (0.1, 0.2, 0.3))
    again = build_backbone(source="transformers", name=name, weights=str(tmp_path)).eval()
    assert torch.equal(ours(IMAGES_BCHW), again(IMAGES_BCHW))


@torch.no_grad()
@pytest.mark.parametrize("source", ["timm", "torchvision", "residual"])
def test_a_transformers_checkpoint_gives_the_same_features_in_another_library(
    source: str, tmp_path: Path, settled: Settle
) -> None:
    theirs = build_backbone(source="transformers", name="microsoft/resnet-50", weights="none")
    settled(theirs.net).save_pretrained(tmp_path)  # type: ignore[operator]  # a method of transformers' models
    ours = build_backbone(source=source, name="resnet50", weights=str(tmp_path)).eval()
    assert torch.equal(ours(IMAGES_BCHW), theirs.eval()(IMAGES_BCHW))


@torch.no_grad()
def test_a_torchvision_file_gives_the_same_features_in_transformers(tmp_path: Path, settled: Settle) -> None:
    net = torchvision_net("resnet18", settled)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    ours = build_backbone(
        source="transformers", name="microsoft/resnet-18", weights=str(tmp_path / "weights.pth")
    ).eval()
    assert torch.equal(ours(IMAGES_BCHW), torchvision_features(net, IMAGES_BCHW))
