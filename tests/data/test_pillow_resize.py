import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data import pillow_resize_numpy as in_numpy
from finetune.data.evaluation_pixels import FILTERS, evaluation_pixels, pillow_resize
from finetune.data.pillow_resize import nearest, resize_window
from finetune.data.pillow_resize_numpy import pillow_window
from finetune.input_spec import InputSpec


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_window_is_the_crop_of_what_pillow_resizes(interpolation):
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        height, width, new_height, new_width = torch.randint(1, 200, (4,), generator=generator).tolist()
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        rows, columns = -(-new_height // 2), -(-new_width // 3)
        top, left = (new_height - rows) // 2, new_width - columns
        pixels_HWC = image.permute(1, 2, 0).numpy()
        whole = pillow_resize(pixels_HWC, size=(new_height, new_width), interpolation=interpolation)
        wanted = whole[top : top + rows, left : left + columns]
        place = {"size": (new_height, new_width), "corner": (top, left), "window": (rows, columns)}
        found = pillow_window(pixels_HWC, **place, interpolation=interpolation)
        assert np.array_equal(found, wanted), (height, width, new_height, new_width)
        window = resize_window(
            image[None],
            **place,
            interpolation=interpolation,
        )
        levels_HWC = window[0].to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(levels_HWC, wanted), (height, width, new_height, new_width)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("given", [(1, 20_000), (20_000, 1), (3, 9_000), (700, 2)])
def test_a_window_of_a_very_long_image_is_the_crop_of_what_pillow_resizes(given, interpolation):
    image = torch.randint(0, 256, (2, *given), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size = tuple(8 * side // min(given) for side in given)
    pixels_HWC = image.permute(1, 2, 0).numpy()
    whole = pillow_resize(pixels_HWC, size=size, interpolation=interpolation)
    for part in (0.0, 0.5, 1.0):
        top, left = (round(part * (side - 8)) for side in size)
        place = {"size": size, "corner": (top, left), "window": (8, 8), "interpolation": interpolation}
        wanted = whole[top : top + 8, left : left + 8]
        window = resize_window(image[None], **place)
        assert np.array_equal(window[0].to(torch.uint8).permute(1, 2, 0).numpy(), wanted), part
        assert np.array_equal(pillow_window(pixels_HWC, **place), wanted), part


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("given", [(1, 1_000_000), (1_000_000, 1), (9, 100), (40_000, 3)])
def test_a_squashed_image_of_any_length_has_the_levels_of_pillow(given, interpolation):
    pixels_HW = np.random.default_rng(0).integers(0, 256, given, np.uint8)
    spec = InputSpec(channels=1, size=(24, 32), interpolation=interpolation, crop_mode="squash")
    found = evaluation_pixels(pixels_HW[..., None], spec)
    # one axis by Pillow, then the other: the order in which version 13 does it
    between = (given[1], 24) if given[0] > given[1] else (32, given[0])
    wanted = Image.fromarray(pixels_HW).resize(between, FILTERS[interpolation]).resize((32, 24), FILTERS[interpolation])
    assert np.array_equal(found[..., 0], np.asarray(wanted))


@pytest.mark.parametrize(
    ("given", "wanted"),
    # the step 3 / 8 is exact; in the last but one, half of the sums lie in the middle of two numbers
    [
        (1000, 3_000_001),
        (3 << 18, 1 << 21),
        (7, 1_500_000),
        (999_983, 70_001),
        ((1 << 52) + 1, 1 << 21),
        (1, 2**20 + 1),
    ],
)
def test_the_nearest_pixels_far_along_an_axis_are_those_of_adding_up_the_step(given, wanted):
    step = torch.tensor(float(given), dtype=torch.float64) / wanted
    sums = torch.cat([(step / 2).reshape(1), step.expand(wanted - 1)]).cumsum(0)
    wanted_positions = sums.floor().clamp(0, given - 1).long()
    for first in (0, min(2**20, wanted) - 36, wanted // 2, wanted - 300):
        count = min(300, wanted - first)
        assert torch.equal(nearest(given, wanted, first, count), wanted_positions[first : first + count]), first
        positions = in_numpy._nearest(given, wanted, first, count)
        assert np.array_equal(positions, wanted_positions[first : first + count].numpy()), first
