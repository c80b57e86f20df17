import pytest
import torch

from finetune.data.pillow_resize import pillow_resize
from finetune.data.resize import resize_window


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_window_is_the_crop_of_what_pillow_resizes(interpolation):
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        height, width, new_height, new_width = torch.randint(1, 200, (4,), generator=generator).tolist()
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        rows, columns = -(-new_height // 2), -(-new_width // 3)
        top, left = (new_height - rows) // 2, new_width - columns
        whole = pillow_resize(image, size=(new_height, new_width), interpolation=interpolation)
        window = resize_window(
            image[None],
            size=(new_height, new_width),
            corner=(top, left),
            window=(rows, columns),
            interpolation=interpolation,
        )
        wanted = whole[None, :, top : top + rows, left : left + columns]
        assert torch.equal(window.to(torch.uint8), wanted), (height, width, new_height, new_width)
