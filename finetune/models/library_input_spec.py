"""Reads the input that a pretrained network expects from the JSON that its library keeps beside the weights."""

from collections.abc import Mapping
from typing import Any

from finetune.input_spec import IMAGENET_MEAN, IMAGENET_STD, CropMode, InputSpec, Interpolation

# PIL's numbers for its resampling filters, which transformers writes
_PIL_FILTERS: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def spec_from_timm(cfg: Mapping[str, Any], *, img_size: int | tuple[int, int] | None = None) -> InputSpec:
    """Return the input specification in a timm ``pretrained_cfg``.

    Args:
        cfg: ``pretrained_cfg`` of a network or of a ``config.json``.
        img_size: Size in pixels that the network was built for; None for the size in ``cfg``.

    >>> spec_from_timm({"input_size": (3, 288, 288), "crop_pct": 1.0, "interpolation": "bicubic"}).size
    (288, 288)
    """
    height, width = tuple(cfg.get("input_size", (3, 224, 224)))[1:]
    if img_size is not None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return InputSpec(
        size=(height, width),
        mean=tuple(cfg.get("mean", IMAGENET_MEAN)),
        std=tuple(cfg.get("std", IMAGENET_STD)),
        # timm's "random" means that training drew bilinear or bicubic; evaluation is then bilinear
        interpolation=_named_filter(cfg.get("interpolation", "bicubic")),
        crop_pct=float(cfg.get("crop_pct") or 0.875),
        # timm's "border" pads instead of cropping; the centre crop is the closest view defined here
        crop_mode="squash" if cfg.get("crop_mode") == "squash" else "center",
    )


def spec_from_transformers(preprocessor: Mapping[str, Any]) -> InputSpec:
    """Return the input specification in a transformers ``preprocessor_config.json``.

    Below 384 pixels, the ConvNeXT processor, which ResNet checkpoints use, resizes the shorter side to
    ``size / crop_pct`` and crops the centre; from 384 pixels on it squashes. The other processors resize, then crop if
    their configuration asks for it.

    >>> spec_from_transformers({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}).crop_pct
    0.875
    >>> spec_from_transformers({"size": {"height": 64, "width": 64}}).crop_mode
    'squash'
    """
    mode: CropMode
    size = preprocessor.get("size", 224)
    crop = preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else None
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if "shortest_edge" not in size:
        height, width, pct, mode = size["height"], size["width"], 1.0, "squash"
    elif crop is not None:
        height, width = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        pct, mode = min(1.0, height / size["shortest_edge"]), "center"
    else:
        height = width = size["shortest_edge"]
        pct, mode = (preprocessor.get("crop_pct") or 0.875, "center") if height < 384 else (1.0, "squash")
    return InputSpec(
        size=(height, width),
        mean=tuple(preprocessor.get("image_mean") or IMAGENET_MEAN),
        std=tuple(preprocessor.get("image_std") or IMAGENET_STD),
        interpolation=_PIL_FILTERS.get(preprocessor.get("resample", 3), "bicubic"),
        crop_pct=pct,
        crop_mode=mode,
    )


def _named_filter(name: str) -> Interpolation:
    filters: dict[str, Interpolation] = {"nearest": "nearest", "bicubic": "bicubic"}
    return filters.get(name, "bilinear")
