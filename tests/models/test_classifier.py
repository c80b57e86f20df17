"""The classifier: raw images in, logits out, everything in between in one module."""

import json

import pytest
import torch

from finetune.errors import UserError
from finetune.models.backbone import Backbone
from finetune.models.build import build_backbone
from finetune.models.classifier import Classifier, adaptation_cost, build_classifier, classifier_from_description


def random_backbone() -> Backbone:
    return build_backbone(source="timm", name="resnet18", weights="none", seed=0)


def small_classifier(*, channels: int = 3, adapt: str = "expand", seed: int = 0) -> Classifier:
    return build_classifier(
        backbone=random_backbone(),
        head={"name": "linear", "drop_rate": 0.1},
        classes=("a", "b", "c"),
        channels=channels,
        adapt=adapt,
        size=(32, 32),
        seed=seed,
    ).eval()


def pixels(channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_bytes_and_floats_of_the_same_image_give_the_same_logits() -> None:
    model = small_classifier()
    assert torch.equal(model(pixels(3)), model(pixels(3).float() / 255))


@torch.no_grad()
def test_expand_is_the_function_of_the_replicated_image_bit_for_bit() -> None:
    assert torch.equal(
        small_classifier(channels=1)(pixels(1)), small_classifier(channels=3)(pixels(1).expand(-1, 3, -1, -1))
    )


def test_every_parameter_and_state_entry_has_a_stage_and_constants_are_not_in_the_state() -> None:
    model = small_classifier()
    names = {name for name, _ in model.named_parameters()} | set(model.state_dict())
    assert {model.stage_of(name) for name in names} == set(model.stages)
    assert not [name for name in model.state_dict() if name.startswith("input")]
    with pytest.raises(KeyError, match="belongs to no stage"):
        model.stage_of("input.mean")


def test_each_module_is_in_one_stage() -> None:
    model = small_classifier()
    placed = [module for modules in model.stage_modules().values() for module in modules]
    assert len(placed) == len(set(placed))
    assert set(model.modules()) - set(placed) == {model, model.input, model.backbone}


@torch.no_grad()
@pytest.mark.parametrize("adapt", ["expand", "fold", "sum", "reinit"])
def test_a_description_through_json_rebuilds_the_architecture(adapt: str) -> None:
    model = small_classifier(channels=1, adapt=adapt)
    again = classifier_from_description(json.loads(json.dumps(model.describe()))).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(model(pixels(1)), again(pixels(1)))
    assert again.describe() == model.describe()


def test_the_seed_decides_the_weights_and_the_global_random_state_stays() -> None:
    before = torch.get_rng_state()
    one, same, other = (small_classifier(seed=seed).head.fc.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_fold_costs_rounding_and_sum_costs_more() -> None:
    images = pixels(1)
    cost = {
        way: adaptation_cost(
            backbone=random_backbone().double(), head={"name": "linear"}, images_BCHW=images, adapt=way
        )
        for way in ("fold", "sum")
    }
    assert cost["fold"] < 1e-12
    assert cost["sum"] > 1e-3


def test_images_with_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \(B, 1, H, W\)"):
        small_classifier(channels=1)(pixels(3))


def test_a_stem_that_was_adapted_is_not_adapted_twice() -> None:
    backbone = random_backbone()
    backbone.adapt_input(channels=1, adapt="fold", seed=0)
    with pytest.raises(UserError, match="a stem made for input"):
        backbone.adapt_input(channels=1, adapt="expand", seed=0)
