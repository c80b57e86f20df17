"""The lines about the input at the start of a run name what is lost on the way to the network, and only that."""

from dataclasses import replace

import pytest

import finetune
from finetune.build.input_lines import input_lines, last_map
from finetune.models.classifier import Classifier


def network(name: str, side: int) -> Classifier:
    backbone = finetune.build_backbone(name, weights="none", **({"img_size": side} if "vit" in name else {}))
    return finetune.build_classifier(backbone, head="linear", classes=["a", "b"], size=(side, side))


def sizes(width: int, height: int) -> dict[str, list[int]]:
    return {"width": [width] * 3, "height": [height] * 3}


@pytest.mark.parametrize(
    ("name", "side", "cells"),
    [
        ("resnet18", 32, (1, 1)),
        ("resnet18", 64, (2, 2)),
        # its squeeze-and-excitation convolves pooled maps of 1 x 1
        ("mobilenetv3_small_050", 64, (2, 2)),
        ("vit_tiny_patch16_224", 48, (3, 3)),
    ],
)
def test_the_last_map_is_that_of_the_last_spatial_convolution(name: str, side: int, cells: tuple[int, int]) -> None:
    assert last_map(network(name, side)) == cells


def test_small_images_are_said_to_be_enlarged_and_reduced_to_one_position() -> None:
    classifier = network("resnet18", 32)
    size, enlarged, point = input_lines(classifier, sizes(8, 8))
    assert (
        size
        == "input: 32 x 32 pixels; evaluation keeps the centre 88% of the shorter side (input.crop_pct=1 keeps all of it)."
    )
    assert "8 x 8 pixels, is enlarged 4.5 times" in enlarged
    assert "1 x 1" in point
    assert "input.size=128" in point


def test_ordinary_photographs_need_one_line() -> None:
    classifier = network("resnet18", 96)
    classifier.input_spec = replace(classifier.input_spec, crop_pct=1.0)
    assert input_lines(classifier, sizes(640, 480)) == ["input: 96 x 96 pixels."]


def test_squashed_images_are_said_to_be_whole() -> None:
    classifier = network("resnet18", 96)
    classifier.input_spec = replace(classifier.input_spec, crop_mode="squash")
    assert input_lines(classifier, sizes(640, 480)) == ["input: 96 x 96 pixels, into which whole images are squashed."]
