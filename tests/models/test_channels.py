"""Grey and many-channel images: what each adaptation computes, against the replicated image."""

from collections.abc import Callable

import pytest
import timm
import torch
from timm.models._manipulate import adapt_input_conv
from torch import nn

from finetune.errors import UserError
from finetune.input_spec import IMAGENET_MEAN, IMAGENET_STD
from finetune.models.build import build_backbone
from finetune.models.channels import InputAdapter, adapt_stem
from finetune.models.classifier import adaptation_cost

Pixels = Callable[..., torch.Tensor]


def stem(dtype: torch.dtype = torch.float32) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False).to(dtype)


def run(adapt: str, images_BCHW: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    channels = images_BCHW.shape[1]
    adapt_stem(conv, channels=channels, adapt=adapt, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=0)
    adapter = InputAdapter(channels=channels, adapt=adapt, mean=IMAGENET_MEAN, std=IMAGENET_STD).to(conv.weight.dtype)
    maps_BCHW: torch.Tensor = conv(adapter(images_BCHW))
    return maps_BCHW


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_fold_equals_the_replicated_image_at_every_pixel_borders_included(
    dtype: torch.dtype, tolerance: float, pixels: Pixels
) -> None:
    grey = pixels(1).to(dtype) / 255
    reference = run("expand", grey.expand(-1, 3, -1, -1), stem(dtype))
    difference = (run("fold", grey, stem(dtype)) - reference).abs()
    assert difference.max() < tolerance * reference.abs().max()
    # a bias in place of the second channel would be right inside and wrong here
    assert difference[..., 0, :].max() < tolerance * reference.abs().max()


@torch.no_grad()
def test_sum_is_exact_where_mean_and_std_are_the_same_for_all_channels(pixels: Pixels) -> None:
    grey = pixels(1).double() / 255
    conv, summed = stem(torch.float64), stem(torch.float64)
    adapt_stem(summed, channels=1, adapt="sum", mean=(0.5,) * 3, std=(0.5,) * 3, seed=0)
    one = InputAdapter(channels=1, adapt="sum", mean=(0.5,) * 3, std=(0.5,) * 3).double()
    three = InputAdapter(channels=3, adapt="expand", mean=(0.5,) * 3, std=(0.5,) * 3).double()
    torch.testing.assert_close(summed(one(grey)), conv(three(grey.expand(-1, 3, -1, -1))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("adapt", "channels"), [("sum", 1), ("tile", 2), ("tile", 5)])
def test_sum_and_tile_give_the_kernels_of_timm(adapt: str, channels: int) -> None:
    conv = stem()
    expected = adapt_input_conv(channels, conv.weight.detach())
    adapt_stem(conv, channels=channels, adapt=adapt, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=0)
    torch.testing.assert_close(conv.weight.detach(), expected)


def test_reinit_draws_from_its_seed_alone() -> None:
    weights = []
    for seed in (1, 1, 2):
        conv = stem()
        torch.rand(seed)
        adapt_stem(conv, channels=4, adapt="reinit", mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=seed)
        weights.append(conv.weight.detach())
    assert weights[0].shape == (16, 4, 7, 7)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_three_channels_leave_the_stem_as_it_is() -> None:
    for adapt in ("expand", "fold", "sum", "tile"):
        conv = stem()
        before = conv.weight
        adapt_stem(conv, channels=3, adapt=adapt, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=0)
        assert conv.weight is before


@pytest.mark.parametrize(
    ("channels", "adapt", "message"),
    [
        (1, "fould", "input.adapt='fould': not known. .* Did you mean 'fold'"),
        (5, "expand", "not defined for input.channels=5. Choose input.adapt=tile or input.adapt=reinit"),
        (1, "tile", "not defined for input.channels=1"),
    ],
)
def test_a_way_that_does_not_exist_is_refused_with_those_that_do(channels: int, adapt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        InputAdapter(channels=channels, adapt=adapt, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@torch.no_grad()
@pytest.mark.parametrize("name", ["repvgg_a0", "tf_efficientnet_lite0"])
def test_fold_is_exact_for_a_stem_with_branches_and_for_one_that_pads_by_itself(name: str, pixels: Pixels) -> None:
    backbone = build_backbone(source="timm", name=name, weights="none").double()
    head = {"name": "linear"}
    assert adaptation_cost(backbone=backbone, head=head, images_BCHW=pixels(1, size=64), adapt="fold") < 1e-12


@pytest.mark.parametrize("layer", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d"])
def test_a_stem_that_standardises_its_kernels_cannot_be_folded(layer: str) -> None:
    conv = getattr(timm.layers, layer)(3, 8, 3)
    with pytest.raises(UserError, match=rf"{layer}, not a plain convolution.* Use input\.adapt=expand"):
        adapt_stem(conv, channels=1, adapt="fold", mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=0)
