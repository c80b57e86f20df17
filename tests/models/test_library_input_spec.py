"""What timm and transformers say about their inputs, as an input specification."""

from typing import Any

import pytest
import timm

from finetune.input_spec import InputSpec
from finetune.models.library_input_spec import spec_from_timm, spec_from_transformers


@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "resnet50.a1_in1k", "vit_small_patch16_224", "convnext_tiny"])
def test_a_timm_configuration_gives_what_timm_itself_resolves(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name).to_dict()
    expected = timm.data.resolve_data_config(pretrained_cfg=cfg)
    spec = spec_from_timm(cfg)
    assert (3, *spec.size) == tuple(expected["input_size"])
    assert (spec.mean, spec.std) == (tuple(expected["mean"]), tuple(expected["std"]))
    assert (spec.interpolation, spec.crop_pct) == (expected["interpolation"], expected["crop_pct"])


@pytest.mark.parametrize(
    ("preprocessor", "size", "crop_pct", "crop_mode"),
    [
        # microsoft/resnet-50, as its processor writes it today and as it did first
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}, (224, 224), 0.875, "center"),
        ({"size": 224, "crop_pct": 0.875, "resample": 3}, (224, 224), 0.875, "center"),
        # the ConvNeXT processor squashes from 384 pixels on
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, (384, 384), 1.0, "squash"),
        # a processor that resizes, then crops
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            (224, 224),
            0.875,
            "center",
        ),
        # a processor that resizes both sides
        ({"size": {"height": 224, "width": 192}, "resample": 2}, (224, 192), 1.0, "squash"),
    ],
)
def test_a_transformers_configuration_gives_the_view_its_processor_makes(
    preprocessor: dict[str, Any], size: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    spec = spec_from_transformers(preprocessor)
    assert (spec.size, spec.crop_pct, spec.crop_mode) == (size, crop_pct, crop_mode)


def test_what_a_configuration_leaves_out_is_imagenets() -> None:
    assert spec_from_timm({}).mean == InputSpec().mean
    assert spec_from_transformers({}).std == InputSpec().std
