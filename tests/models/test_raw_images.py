"""Raw images of any size: the module answers as ``predict`` and the export do, and refuses what it would misread."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import finetune
from finetune.errors import UserError
from finetune.export.graph import ImageGraph
from finetune.inference.torch_engine import TorchEngine
from tests.bundles import small_bundle
from tests.export.trained import settled_classifier


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 128 pixels that crops the centre of what it resizes."""
    model = settled_classifier(name="resnet10t", size=(128, 128), crop_pct=0.875)
    return small_bundle(tmp_path_factory.mktemp("bundle"), model)


def pictures(height: int, width: int, *, channels: int = 3, count: int = 2) -> Tensor:
    """Smooth pictures, on which a resize changes the answers."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.randint(0, 256, (count, channels, 9, 9), dtype=torch.uint8, generator=generator)
    return (
        torch.nn.functional.interpolate(coarse.float(), (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
    )


@torch.inference_mode()
@pytest.mark.parametrize("size", [(300, 300), (300, 411), (90, 64), (129, 128), (2, 900)])
def test_pictures_of_another_size_have_the_probabilities_of_predict_and_of_the_export(
    bundle: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    images = pictures(*size)
    model = finetune.load(bundle)
    shares = model.probabilities(model(images))
    engine = TorchEngine(bundle)
    files = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    predicted = engine.classify([engine.read(str(file)) for file in files]).probabilities_NK
    np.testing.assert_allclose(shares, predicted, atol=1e-5)
    torch.testing.assert_close(shares, ImageGraph(model, layout="nchw")(images), atol=1e-5, rtol=0)
    # floats of the same levels, and features
    torch.testing.assert_close(model(images / 255), model(images))
    assert model.embed(images).shape == (2, model.backbone.num_features)


def test_pictures_of_the_input_size_are_views_already_and_stay_as_they_are(bundle: Path) -> None:
    model = finetune.load(bundle)
    images = pictures(128, 128)
    with torch.inference_mode():
        assert torch.equal(model(images), model.head(model.backbone(model.prepare(images))))
        assert model(images[:0]).shape == model(pictures(50, 50)[:0]).shape == (0, len(model.classes))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(300, 300).permute(0, 2, 3, 1), r"\(2, 300, 300, 3\): .* last\. Use images\.permute\(0, 3, 1, 2\)"),
        (pictures(300, 300)[0], r"This is one image\. Use images\[None\]"),
        (pictures(300, 300)[0].permute(1, 2, 0), r"one image with .* last\. Use images\.permute\(2, 0, 1\)\[None\]"),
        (pictures(300, 300, channels=1), r"\(2, 1, 300, 300\): this model takes \(B, 3, H, W\)\. .*input\.channels=1"),
        (pictures(300, 300).float(), r"float from 0 to 255\. .*divide by 255"),
        (pictures(128, 128).float(), r"float from 0 to 255\. .*divide by 255"),
        (pictures(128, 128) / 255 - 3, r"float from -3 to -2\. .*normalises them itself"),
        (torch.full((2, 3, 128, 128), torch.nan), r"images: hold NaN\. Replace"),
        (pictures(128, 128).long(), r"type torch\.int64: .*images\.to\(torch\.uint8\)"),
        ((pictures(99, 99) / 255).requires_grad_(), r"must have the input size 128 x 128 where a gradient"),
    ],
)
def test_what_would_be_misread_is_refused_with_the_right_form(bundle: Path, images: Any, message: str) -> None:
    model = finetune.load(bundle)
    for function in (model, model.embed):
        with pytest.raises(UserError, match=message):
            function(images)


def test_a_stack_of_grey_pictures_without_channels_is_refused_with_the_right_form() -> None:
    model = settled_classifier(name="resnet10t", channels=1)
    with pytest.raises(UserError, match=r"no dimension of channels\. Use images\[:, None\]"):
        model(pictures(40, 40)[:, 0])
