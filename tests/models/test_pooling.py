"""``backbone.pool``: every pooling against its formula, in every place that a network goes to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.errors import UserError
from finetune.models.backbone import Backbone
from finetune.models.build import build_backbone
from finetune.models.classifier import build_classifier, classifier_from_description
from finetune.models.weights import save_backbone

VIT = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
# networks with a class token, with registers too, with an attention pool, without a class token, and with maps
NETWORKS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": VIT,
    "vit_small_patch14_reg4_dinov2": {**VIT, "img_size": 28},
    "vit_base_patch16_siglip_224": VIT,
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2},
    "beit_base_patch16_224": {**VIT, "init_values": 0.1},
    "resnet10t": {},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4]},
    "mobilenetv3_small_100": {},
}
POSSIBLE = {
    "vit_tiny_patch16_224": ("cls", "mean", "cls_mean"),
    "vit_small_patch14_reg4_dinov2": ("cls", "mean", "cls_mean"),
    "vit_base_patch16_siglip_224": ("mean", "map"),
    "eva02_tiny_patch14_224": ("cls", "mean", "cls_mean"),
    "beit_base_patch16_224": ("cls", "mean", "cls_mean"),
    "resnet10t": ("mean", "gem"),
    "convnext_atto": ("mean", "gem"),
    "swin_tiny_patch4_window7_224": ("mean", "gem"),
    "mobilenetv3_small_100": ("mean", "gem"),
}
PAIRS = [(name, pool) for name, pools in POSSIBLE.items() for pool in pools]


def build(name: str, pool: str | None = None, weights: str | Path = "none") -> Backbone:
    return build_backbone(name, weights=weights, pool=pool, **NETWORKS[name]).eval()


def images(backbone: Backbone) -> Tensor:
    height, width = backbone.input_spec.size if backbone.fixed_size else (64, 64)
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def by_hand(backbone: Backbone, pool: str, pixels: Tensor) -> Tensor:
    """The features by the pooling's definition, from the last tokens or maps of the network."""
    net: Any = backbone.net
    last = net.forward_features(pixels)
    if pool in ("cls", "mean", "cls_mean"):
        norm = net.fc_norm if hasattr(net, "fc_norm") else torch.nn.Identity()
        # a network with a norm after its pooling has it after the pooling of its own kind
        parts = {"cls": last[:, 0], "mean": last[:, net.num_prefix_tokens :].mean(1)}
        if pool == "cls_mean":
            each = norm(last)
            return torch.cat([each[:, 0], each[:, net.num_prefix_tokens :].mean(1)], 1)
        return norm(parts[pool])
    raise AssertionError(pool)


@pytest.mark.parametrize(("name", "pool"), [pair for pair in PAIRS if "cls" in POSSIBLE[pair[0]]])
@torch.no_grad()
def test_tokens_are_pooled_by_definition_without_registers(name: str, pool: str) -> None:
    backbone = build(name, pool)
    features = backbone(images(backbone))
    assert features.shape == (2, backbone.num_features)
    torch.testing.assert_close(features, by_hand(backbone, pool, images(backbone)))


@torch.no_grad()
def test_gem_is_the_third_root_of_the_mean_of_third_powers() -> None:
    backbone = build("resnet10t", "gem")
    maps = backbone.net.forward_features(images(backbone))  # type: ignore[operator]  # nn.Module types attributes as Tensor
    expected = (maps.double() ** 3).mean((2, 3)) ** (1 / 3)
    torch.testing.assert_close(backbone(images(backbone)).double(), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_attention_pool_that_is_not_used_goes_with_its_parameters() -> None:
    own, mean = build("vit_base_patch16_siglip_224"), build("vit_base_patch16_siglip_224", "mean")
    assert own.pool is None
    assert any("attn_pool" in name for name in own.net.state_dict())
    assert not any("attn_pool" in name for name in mean.net.state_dict())
    # the final norm alone is no stage
    assert mean.stages[-1] == "blocks.1"
    tokens = mean.net.forward_features(images(mean))  # type: ignore[operator]
    torch.testing.assert_close(mean(images(mean)), tokens.mean(1))


@pytest.mark.parametrize(("name", "pool"), PAIRS)
@torch.no_grad()
def test_a_pooling_stays_with_the_network(name: str, pool: str, tmp_path: Path) -> None:
    backbone = build(name, pool)
    pixels = images(backbone)
    features = backbone(pixels)
    for stage in backbone.boundaries:
        prefix, suffix = backbone.split(stage)
        assert torch.equal(suffix(prefix(pixels)), features), stage
    size = (pixels.shape[2], pixels.shape[3])
    model = build_classifier(backbone, classes=("a", "b"), size=size).eval()
    # a bundle: rebuilt from its description
    again = classifier_from_description(json.loads(json.dumps(model.describe()))).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.backbone(pixels), features)
    # an exported backbone brings its pooling, which a setting changes
    save_backbone(tmp_path / "backbone.safetensors", backbone=backbone, size=size)
    assert torch.equal(build(name, weights=tmp_path / "backbone.safetensors")(pixels), features)
    other = next(one for one in reversed(POSSIBLE[name]) if one != pool)
    if other != "map":  # its parameters are gone
        changed = build(name, other, weights=tmp_path / "backbone.safetensors")
        assert torch.equal(changed(pixels), build(name, other)(pixels))


def test_the_networks_own_pooling_changes_nothing() -> None:
    for name, pool in (("vit_tiny_patch16_224", "cls"), ("vit_base_patch16_siglip_224", "map"), ("resnet10t", "mean")):
        assert build(name, pool).describe() == build(name).describe()


def test_features_of_both_kinds_are_twice_as_long_and_train_a_head() -> None:
    backbone = build("vit_tiny_patch16_224", "cls_mean")
    model = build_classifier(backbone, classes=("a", "b"))
    assert backbone.num_features == model.head.fc.in_features == 96
    assert build("vit_tiny_patch16_224", "mean").num_features == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet10t", "pool": "cls"},
            r"backbone\.pool='cls': resnet10t cannot pool so\. It can by mean or gem\.",
        ),
        ({"name": "vit_tiny_patch16_224", "pool": "map", **VIT}, r"It can by cls or mean or cls_mean\."),
        ({"name": "hiera_tiny_224", "pool": "mean"}, r"It has a pooling of its own\. Leave it out\."),
        # a head for each of two tokens, of which it gives the mean
        (
            {"name": "deit_tiny_distilled_patch16_224", "pool": "mean", **VIT},
            r"It has a pooling of its own\. Leave it out\.",
        ),
        (
            {"name": "deit_tiny_distilled_patch16_224", "pool": "cls", **VIT},
            r"It has a pooling of its own\. Leave it out\.",
        ),
        ({"name": "resnet10t", "pool": "gme"}, r"must be one of .*Did you mean 'gem'"),
        (
            {"name": "resnet18", "source": "torchvision", "pool": "gem"},
            r"for networks of timm, not for one of torchvision",
        ),
        ({"name": "resnet10t", "global_pool": "max"}, r"Use backbone\.pool\."),
    ],
)
def test_a_pooling_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(weights="none", **arguments)
