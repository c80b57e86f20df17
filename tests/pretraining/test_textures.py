import torch

from finetune.pretraining.textures import (
    FOLDS,
    Leaves,
    dead_leaves,
    filtered_noise,
    folded,
    leaves,
    texture_values,
    textures,
)


def spectrum(exponent: float, centre: float, octaves: float, turn: float = 0.0, long: float = 1.0) -> torch.Tensor:
    return torch.tensor([[exponent, centre, octaves, turn, long]])


def test_filtered_noise_has_mean_zero_and_variance_one_in_every_image() -> None:
    noise = filtered_noise(torch.arange(20), textures(torch.arange(20)).spectrum_K5, 32)
    torch.testing.assert_close(noise.mean((1, 2)), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(noise.std((1, 2)), torch.ones(20), atol=1e-4, rtol=0)


def test_the_band_of_the_noise_is_where_it_was_asked_for() -> None:
    keys = torch.arange(16)
    for centre in (4.0, 12.0):
        noise = filtered_noise(keys, spectrum(0.0, centre, 0.2).expand(16, -1), 64)
        power = torch.fft.fft2(noise).abs().square().mean(0)
        f = torch.fft.fftfreq(64, 1 / 64)
        radius = torch.sqrt(f[:, None] ** 2 + f[None] ** 2)
        mean = (power * radius).sum() / power.sum()
        assert abs(mean - centre) < 0.15 * centre


def test_elongated_noise_changes_more_slowly_along_its_direction() -> None:
    noise = filtered_noise(torch.arange(16), spectrum(1.0, 6.0, 1.0, turn=0.0, long=6.0).expand(16, -1), 64)
    along = (noise[:, :, 1:] - noise[:, :, :-1]).square().mean()
    across = (noise[:, 1:] - noise[:, :-1]).square().mean()
    assert along < 0.25 * across


def test_every_fold_gives_values_between_zero_and_one_that_vary() -> None:
    noise = filtered_noise(torch.arange(FOLDS), spectrum(1.0, 6.0, 1.0).expand(FOLDS, -1), 32)
    values = folded(noise, torch.arange(FOLDS), torch.full((FOLDS,), 1.2))
    assert values.min() >= 0
    assert values.max() <= 1
    assert (values.std((1, 2)) > 0.05).all()


def test_two_images_of_one_texture_differ_in_pixels_but_little_in_statistics() -> None:
    patterns = textures(torch.arange(1, 2).expand(2))
    first, second = texture_values(patterns, torch.tensor([1, 2]), 64)
    assert (first - second).abs().mean() > 0.05
    assert abs(first.mean() - second.mean()) < 0.15


def test_leaves_of_one_size_cover_what_their_area_says() -> None:
    world = Leaves(
        corners_K=torch.zeros(8),
        elongation_K=torch.ones(8),
        exponent_K=torch.full((8,), 2.0),
        radii_K2=torch.tensor([[0.2, 0.2001]]).expand(8, -1),
        hole_K=torch.zeros(8),
    )
    one = dead_leaves(world, torch.arange(8), 64, count=1)[:, 0]
    ground = one.flatten(1).mode(dim=1).values[:, None, None]
    # a disc of radius 0.2 on a canvas of area 4; one that hangs over the edge covers less
    covered = ((one - ground).abs() > 1e-6).float().mean((1, 2))
    assert covered.max() < 1.35 * 3.1416 * 0.04 / 4
    assert covered.max() > 0.02


def test_later_leaves_lie_on_top_and_values_stay_in_range() -> None:
    keys = torch.arange(6)
    few, many = dead_leaves(leaves(keys), keys, 32, count=5), dead_leaves(leaves(keys), keys, 32, count=40)
    assert many.min() >= 0
    assert many.max() <= 1
    assert many.std((2, 3)).mean() > few.std((2, 3)).mean() * 0.8
