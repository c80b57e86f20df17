import pytest
import torch

from finetune.data.transforms import eval_view
from finetune.export.graph import resize_and_crop
from finetune.input_spec import CropMode, InputSpec, Interpolation


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("mode", "crop_pct", "size"), [("center", 0.875, (32, 32)), ("squash", 1.0, (32, 24)), ("center", 0.95, (24, 40))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_graph_prepares_images_of_any_size_to_the_very_levels_of_evaluation(
    interpolation: Interpolation, mode: CropMode, crop_pct: float, size: tuple[int, int], channels: int
) -> None:
    spec = InputSpec(channels=channels, size=size, interpolation=interpolation, crop_mode=mode, crop_pct=crop_pct)
    view, generator = eval_view(spec), torch.Generator().manual_seed(0)
    for _ in range(40):
        height, width = torch.randint(1, 150, (2,), generator=generator).tolist()
        image = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)
        assert torch.equal(resize_and_crop(image[None], spec)[0], view(image).float()), (height, width)
