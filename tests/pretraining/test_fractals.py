import itertools

import pytest
import torch

from finetune.errors import UserError
from finetune.pretraining.fractals import RECIPES, FormulaRenderer, render_batch


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_an_image_is_the_same_alone_and_in_any_batch(recipe: str) -> None:
    renderer = FormulaRenderer(recipe=recipe, classes=12, seed=3)
    keys = torch.arange(24)
    together = renderer.render(keys, size=24)
    backwards = renderer.render(keys.flip(0), size=24).flip(0)
    alone = torch.cat([renderer.render(key[None], size=24) for key in keys])
    for other in (backwards, alone):
        # one step of 255 where another batch size makes torch sum in another order
        assert (together.int() - other.int()).abs().max() <= 1
        assert (together == other).float().mean() > 0.999


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_images_of_a_recipe_are_pictures_and_no_two_are_equal(recipe: str) -> None:
    images = render_batch(torch.arange(60), size=32, recipe=recipe, classes=20)
    assert images.dtype == torch.uint8
    assert images.shape == (60, 3, 32, 32)
    assert len(images.flatten(1).unique(dim=0)) == 60
    spread = images.float().std((1, 2, 3))
    assert (spread > 5).float().mean() > 0.85


def test_a_recipe_gives_every_family_its_share_of_the_classes() -> None:
    families = FormulaRenderer(recipe="mix", classes=100).families
    assert families[0][0] == 0
    assert families[-1][1] == 100
    assert all(before[1] == after[0] for before, after in itertools.pairwise(families))
    shares = [share for _, share in RECIPES["mix"]]
    assert all(abs((high - low) - 100 * share) <= 4 for (low, high, _), share in zip(families, shares, strict=True))


def test_another_seed_gives_other_formulas_and_other_images() -> None:
    first, second = (render_batch(torch.arange(8), size=24, classes=8, seed=seed) for seed in (0, 1))
    assert not (first == second).flatten(1).all(1).any()


def test_images_of_one_class_resemble_each_other_more_than_those_of_two() -> None:
    # the glyphs of one class share their strokes: compared as edges, blurred, whatever their colours
    renderer = FormulaRenderer(recipe="fractaldb", classes=30)
    images = renderer.render(torch.arange(60), size=32).float().amax(1)
    shapes = torch.nn.functional.avg_pool2d((images > 0).float()[:, None], 4).flatten(1)
    distance = torch.cdist(shapes[:30], shapes[30:].view(30, -1))
    own = distance.diagonal().mean()
    others = (distance.sum() - distance.diagonal().sum()) / (30 * 29)
    assert own < others


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"data\.recipe='fractal'.*Did you mean 'fractals'"):
        FormulaRenderer(recipe="fractal")


def test_too_few_classes_for_the_families_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.classes=2: recipe 'mix' needs at least 5"):
        FormulaRenderer(recipe="mix", classes=2)


@pytest.mark.gpu
def test_a_gpu_draws_the_processor_s_images_up_to_rounding() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    keys = torch.arange(200)
    here, there = (render_batch(keys, size=64, device=device, classes=40).cpu() for device in ("cpu", "cuda"))
    # fractals: a point at a pixel's edge may fall to either side
    assert (here.float() - there.float()).abs().mean() < 1.0
