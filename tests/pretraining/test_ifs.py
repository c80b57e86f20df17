import pytest
import torch

from finetune.pretraining.ifs import (
    MAPS,
    Codes,
    attractor,
    density,
    fitted,
    good_codes,
    perturbed,
    singular_value_codes,
    uniform_codes,
)


def sierpinski() -> Codes:
    """Three halvings towards the corners of a triangle."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    affine = torch.zeros(1, MAPS, 6)
    affine[0, :3, 0] = affine[0, :3, 3] = 0.5
    affine[0, :3, 4:] = 0.5 * corners
    return Codes(affine_KM6=affine, lookup_KL=torch.arange(256)[None] * 3 // 256, maps_K=torch.tensor([3]))


def test_the_chaos_game_draws_the_sierpinski_triangle() -> None:
    points, hue = attractor(sierpinski(), chains=500, steps=20)
    x, y = points[0].double()
    assert points.shape == (1, 2, 10_000)
    assert 0 <= x.min() <= x.max() <= 1
    assert 0 <= y.min() <= y.max() <= 1
    # the middle triangle of every level is empty: at the first level it stands on its tip at (1/2, 0)
    hole = (y < 0.48) & ((x - 0.5).abs() < 0.48 * y)
    assert not hole.any()
    # and each third holds a third of the points
    top = (y > 0.5).double().mean()
    assert abs(top - 1 / 3) < 0.02
    assert hue.min() >= 0
    assert hue.max() <= 1


def test_singular_value_codes_contract_and_meet_the_sigma_factor() -> None:
    codes = singular_value_codes(torch.arange(300))
    values = torch.linalg.svdvals(codes.affine_KM6[..., :4].reshape(-1, 2, 2)).reshape(300, MAPS, 2)
    used = torch.arange(MAPS) < codes.maps_K[:, None]
    assert values.max() < 1
    factor = ((values[..., 0] + 2 * values[..., 1]) * used).sum(1)
    low, high = (5 + codes.maps_K) / 2, (6 + codes.maps_K) / 2
    # where too many maps are at their bound the rest cannot make up for them
    met = (factor > low - 0.01) & (factor < high + 0.01)
    assert met.float().mean() > 0.9


def test_each_map_is_chosen_in_proportion_to_its_area() -> None:
    codes = singular_value_codes(torch.arange(50))
    assert (codes.lookup_KL < codes.maps_K[:, None]).all()
    a, b, c, d = codes.affine_KM6[..., :4].unbind(-1)
    used = torch.arange(MAPS) < codes.maps_K[:, None]
    area = ((a * d - b * c).abs() + 0.02) * used
    shares = torch.stack([(codes.lookup_KL == number).float().mean(1) for number in range(MAPS)], dim=1)
    assert (shares - area / area.sum(1, keepdim=True)).abs().max() < 1 / 128


@pytest.mark.parametrize("singular_values", [True, False])
def test_good_codes_stay_finite_and_fill_a_fair_part_of_their_box(singular_values: bool) -> None:
    codes = good_codes(torch.arange(100), singular_values=singular_values)
    points, hue = attractor(codes)
    assert points.isfinite().all()
    counts, _ = density(fitted(points), hue, 32)
    share = (counts > 0).float().mean((1, 2))
    # the search plays a shorter game, in which a point far out is rarer and the box smaller
    assert ((share > 0.08) & (share < 0.85)).float().mean() > 0.9


def test_a_class_keeps_its_code_whatever_classes_are_searched_with_it() -> None:
    keys = torch.arange(40)
    together, alone = good_codes(keys, singular_values=True), good_codes(keys[7:8], singular_values=True)
    assert torch.equal(together.affine_KM6[7], alone.affine_KM6[0])
    assert torch.equal(together.lookup_KL[7], alone.lookup_KL[0])


def test_uniform_codes_have_two_to_eight_maps_in_the_unit_cube() -> None:
    codes = uniform_codes(torch.arange(500))
    assert codes.maps_K.unique().tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert codes.affine_KM6.abs().max() <= 1


def test_density_counts_points_and_leaves_out_what_is_outside() -> None:
    points = torch.tensor([[[-0.9, -0.9, 0.9, 1.5, float("inf")], [-0.9, -0.9, 0.9, 0.0, 0.0]]])
    counts, values = density(points, torch.tensor([[0.2, 0.4, 0.8, 1.0, 1.0]]), 4)
    assert counts[0, 0, 0] == 2
    assert counts[0, 3, 3] == 1
    assert counts.sum() == 3
    torch.testing.assert_close(values[0, 0, 0], torch.tensor(0.3))


def test_fitted_points_touch_the_canvas_on_their_longer_side() -> None:
    points = fitted(torch.tensor([[[2.0, 6.0, 4.0], [1.0, 2.0, 3.0]]]))
    assert points[0, 0].min() == -1
    assert points[0, 0].max() == 1
    assert points[0, 1].abs().max() == 0.5


def test_perturbation_differs_by_image_and_stays_within_its_amount() -> None:
    codes = singular_value_codes(torch.zeros(2, dtype=torch.int64))
    moved = perturbed(codes, torch.tensor([1, 2]), amount=0.1)
    assert not torch.equal(moved.affine_KM6[0], moved.affine_KM6[1])
    ratio = moved.affine_KM6 / codes.affine_KM6
    assert ratio.min() >= 0.9 - 1e-5
    assert ratio.max() <= 1.1 + 1e-5
