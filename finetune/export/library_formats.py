"""The trained network as other libraries lay it out: folders for timm, torchvision and transformers.

These libraries know colour images only. A network of one channel is written with a stem of three that computes the same
function of a grey image whose channel is repeated, see :func:`colour_stem`.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.atomic_files import atomic_path, write_json
from finetune.errors import UserError
from finetune.export.export_metadata import KEY, provenance
from finetune.input_spec import InputSpec
from finetune.models.channels import PRETRAINED_CHANNELS
from finetune.models.classifier import Classifier
from finetune.models.heads import LinearHead
from finetune.safetensors_writer import write_tensors

WEIGHTS = "model.safetensors"
WITHOUT_TIMM = "without_timm"
# name -> blocks a stage, basic or bottleneck: He et al. 2015, the networks that all three libraries lay out alike
RESNETS: dict[str, tuple[tuple[int, ...], str]] = {
    "resnet18": ((2, 2, 2, 2), "basic"),
    "resnet34": ((3, 4, 6, 3), "basic"),
    "resnet50": ((3, 4, 6, 3), "bottleneck"),
    "resnet101": ((3, 4, 23, 3), "bottleneck"),
    "resnet152": ((3, 8, 36, 3), "bottleneck"),
}
_PILLOW_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def export_timm(classifier: Classifier, folder: Path) -> None:
    """A folder for ``timm.create_model("local-dir:FOLDER", pretrained=True)``, with its data config and label names.

    Raises:
        UserError: The network is not timm's, or the layout cannot hold its head or stem.
    """
    net = classifier.backbone
    plain = _plain_resnet(classifier)
    if net.source != "timm" and plain is None:
        raise _no_layout("timm", f"the network {net.name!r} comes from {net.source}")
    state, spec = _with_linear_head(classifier, "timm"), classifier.input_spec
    name = net.name if net.source == "timm" else str(plain)
    cfg = getattr(net.net, "pretrained_cfg", None) or {}
    classifier_name = cfg.get("classifier", "fc")
    if not isinstance(classifier_name, str):
        raise _no_layout("timm", f"{name} has several classifiers there")
    arguments = dict(net.kwargs) if net.source == "timm" else {}
    _save(_renamed_head(state, classifier_name), folder)
    write_json(
        folder / "config.json",
        {
            "architecture": name.partition(".")[0],
            "num_classes": len(classifier.classes),
            "num_features": net.num_features,
            "label_names": list(classifier.classes),
            **({"model_args": arguments} if arguments else {}),
            "pretrained_cfg": {
                "custom_load": False,
                "fixed_input_size": net.fixed_size,
                **_timm_preparation(spec),
                "num_classes": len(classifier.classes),
                "pool_size": None,
                "first_conv": net.first_convs[0] if len(net.first_convs) == 1 else list(net.first_convs),
                "classifier": classifier_name,
            },
            KEY: provenance(classifier),
        },
    )


def export_torchvision(classifier: Classifier, folder: Path) -> None:
    """A folder with a state dict for ``torchvision.models.NAME(num_classes=K).load_state_dict`` and its classes.

    Raises:
        UserError: torchvision has no such network, or the layout cannot hold its head, stem or crop.
    """
    name = _plain_resnet(classifier)
    if name is None and classifier.backbone.source == "torchvision" and not classifier.backbone.kwargs:
        name = classifier.backbone.name
    if name is None:
        raise _no_layout("torchvision", f"torchvision's layout of {classifier.backbone.name!r} is another one")
    spec = classifier.input_spec
    if spec.crop_mode == "center" and spec.size[0] != spec.size[1]:
        raise _no_layout("torchvision", f"its Resize cannot cover a crop of {spec.size[0]} x {spec.size[1]} pixels")
    state = _with_linear_head(classifier, "torchvision")
    _save(_renamed_head(state, "fc"), folder)
    write_json(
        folder / "classes.json",
        {
            "architecture": name,
            "classes": list(classifier.classes),
            "preprocessing": {
                "resize": _resize_sides(spec.size, spec.crop_pct) if spec.crop_mode == "center" else list(spec.size),
                "keep_proportions": spec.crop_mode == "center",
                "center_crop": list(spec.size),
                "interpolation": spec.interpolation,
                "mean": list(spec.mean),
                "std": list(spec.std),
            },
            KEY: provenance(classifier),
        },
    )


def export_transformers(classifier: Classifier, folder: Path) -> None:
    """A folder for ``transformers.pipeline("image-classification", model=FOLDER)``, which prepares images by timm.

    transformers' own processors resize with other filter weights and round half a pixel of the crop down, where timm,
    torchvision and evaluation round it to even: a quarter of all images would be cut one pixel beside. Its processor
    ``TimmWrapperImageProcessor`` runs timm's transform. A processor that does without timm lies in ``without_timm/``.

    Raises:
        UserError: The network is not one of the plain ResNets, or the layout cannot hold its head or stem.
    """
    name, spec, own = _plain_resnet(classifier), classifier.input_spec, classifier.backbone.source == "transformers"
    if name is None and not own:
        raise _no_layout(
            "transformers",
            f"its ResNet family holds {', '.join(RESNETS)}, and this network is {classifier.backbone.name!r}",
        )
    state = _with_linear_head(classifier, "transformers")
    if own:
        architecture = dict(classifier.backbone.kwargs)
        renamed = {f"resnet.{key}" if key[:3] != "fc." else _transformers_name(key): state[key] for key in state}
    else:
        architecture = _transformers_architecture(*RESNETS[str(name)])
        renamed = {_transformers_name(key): value for key, value in state.items()}
    _save(renamed, folder)
    names = {str(number): name for number, name in enumerate(classifier.classes)}
    write_json(
        folder / "config.json",
        {
            "architectures": ["ResNetForImageClassification"],
            "model_type": "resnet",
            "num_channels": PRETRAINED_CHANNELS,
            **architecture,
            "id2label": names,
            "label2id": {name: int(number) for number, name in names.items()},
            "problem_type": "single_label_classification",
            "dtype": "float32",
            "image_processor_type": "TimmWrapperImageProcessor",
            "architecture": name or classifier.backbone.name,
            "pretrained_cfg": _timm_preparation(spec),
            KEY: provenance(classifier),
        },
    )
    if spec.crop_mode == "squash" or spec.size[0] == spec.size[1]:
        (folder / WITHOUT_TIMM).mkdir(exist_ok=True)
        write_json(folder / WITHOUT_TIMM / "preprocessor_config.json", _bit_preparation(spec))


def _timm_preparation(spec: InputSpec) -> dict[str, Any]:
    """The part of a ``pretrained_cfg`` that timm makes its evaluation transform of."""
    return {
        "input_size": [PRETRAINED_CHANNELS, *spec.size],
        "interpolation": spec.interpolation,
        # timm would resize to the size over crop_pct and crop also where both sides are squashed
        "crop_pct": spec.crop_pct if spec.crop_mode == "center" else 1.0,
        "crop_mode": spec.crop_mode,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def _bit_preparation(spec: InputSpec) -> dict[str, Any]:
    """A processor of transformers' own; it cuts a quarter of all images one pixel beside, see export_transformers."""
    (height, width), covers = spec.size, spec.crop_mode == "center"
    shortest = {"shortest_edge": _resize_sides(spec.size, spec.crop_pct)[0]}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": shortest if covers else {"height": height, "width": width},
        "resample": _PILLOW_FILTERS[spec.interpolation],
        "do_center_crop": covers,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def colour_stem(classifier: Classifier, conv: str) -> Tensor:
    """A first convolution's weights ``(O, 3, k, k)`` for a normalised colour image, or a grey one repeated.

    A stem of one channel, with or without the constant channel of ``fold``, computes ``W * (g - m) / s + V * 1``. On three
    channels ``(g - m_c) / s_c`` the kernels ``s_c U_c`` compute the same, border included, where::

        sum_c U_c = W / s          sum_c m_c U_c = W m / s - V

    With ``U_c = W / (3 s) - (m_c - m) V / sum_c (m_c - m)^2`` and m the average of the m_c both hold. Without V it always
    exists; with V it needs means that differ.

    Args:
        classifier: The network.
        conv: Name of the convolution in the backbone's network.

    Raises:
        UserError: The stem has other channels, or the means are equal and V is not zero.
    """
    weight = classifier.backbone.net.get_submodule(conv).get_parameter("weight").detach()
    if weight.shape[1] == PRETRAINED_CHANNELS and classifier.input_spec.channels in (1, PRETRAINED_CHANNELS):
        return weight
    channels, spec = classifier.input_spec.channels, classifier.input_spec
    if channels != 1:
        raise UserError(
            f"this layout holds images of one or three channels. This network takes {channels}. "
            "Use --format onnx or --format torch_export, which hold any number."
        )
    mean_C = torch.tensor(spec.mean, dtype=torch.float32).double()
    std_C = torch.tensor(spec.std, dtype=torch.float32).double()
    image = weight[:, 0].double() / classifier.input.std.double().flatten()[0]
    per_channel = [image / PRETRAINED_CHANNELS] * PRETRAINED_CHANNELS
    if classifier.input.appends_one:
        constant, away_C = weight[:, 1].double(), mean_C - classifier.input.mean.double().flatten()[0]
        spread = float((away_C**2).sum())
        if spread < 1e-6 and float(constant.abs().max()) > 0:
            raise UserError(
                "this layout cannot hold the folded stem: its second kernel reads a constant channel, and where "
                f"input.mean={list(spec.mean)} is the same for all channels no stem of three computes the same. "
                "Use --format onnx or --format torch_export, or train with input.adapt=expand."
            )
        if spread >= 1e-6:
            per_channel = [kernel - away * constant / spread for kernel, away in zip(per_channel, away_C, strict=True)]
    stem = torch.stack([kernel * std for kernel, std in zip(per_channel, std_C, strict=True)], dim=1)
    return stem.to(weight.dtype).contiguous()


def _with_linear_head(classifier: Classifier, layout: str) -> dict[str, Tensor]:
    """The network's state dict with a stem for colour, and the head as ``fc.weight`` and ``fc.bias``."""
    if not isinstance(classifier.head, LinearHead):
        raise _no_layout(
            layout, f"its classifier is one linear layer, and this head is {classifier.head.settings['name']!r}"
        )
    state = {name: tensor.detach().contiguous() for name, tensor in classifier.backbone.net.state_dict().items()}
    for conv in classifier.backbone.first_convs:
        try:
            state[f"{conv}.weight"] = colour_stem(classifier, conv)
        except UserError as error:
            raise UserError(f"--format {layout}: {error}") from None
    fc = classifier.head.fc
    return {**state, "fc.weight": fc.weight.detach().contiguous(), "fc.bias": fc.bias.detach().contiguous()}


def _save(state: dict[str, Tensor], folder: Path) -> None:
    with atomic_path(folder / WEIGHTS) as part:
        write_tensors(part, state, metadata={"format": "pt"})


def _renamed_head(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {re.sub(r"^fc\.", f"{name}.", key): value for key, value in state.items()}


def _plain_resnet(classifier: Classifier) -> str | None:
    """The name of the plain ResNet that a backbone is, in timm's or torchvision's spelling; None if it is none."""
    backbone = classifier.backbone
    name = backbone.name.partition(".")[0]
    known = backbone.source in ("timm", "torchvision") and name in RESNETS and not backbone.kwargs
    return name if known else None


def _transformers_architecture(depths: tuple[int, ...], layer: str) -> dict[str, Any]:
    return {
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048],
        "depths": list(depths),
        "layer_type": layer,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def _transformers_name(key: str) -> str:
    """A plain ResNet's name for a tensor, ``layer1.0.conv1.weight``, as transformers names it.

    >>> _transformers_name("layer2.0.downsample.1.bias")
    'resnet.encoder.stages.1.layers.0.shortcut.normalization.bias'
    >>> _transformers_name("layer1.1.bn2.weight")
    'resnet.encoder.stages.0.layers.1.layer.1.normalization.weight'
    """
    kinds = {"conv": "convolution", "bn": "normalization"}
    if key.startswith("fc."):
        return key.replace("fc.", "classifier.1.")
    if found := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        return f"resnet.embedder.embedder.{kinds[found[1]]}.{found[2]}"
    found = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", key)
    assert found, f"{key} is no tensor of a plain ResNet"
    layer = f"resnet.encoder.stages.{int(found[1]) - 1}.layers.{found[2]}"
    if found[3] == "downsample.":
        return f"{layer}.shortcut.{('convolution', 'normalization')[int(found[4])]}.{found[5]}"
    return f"{layer}.layer.{int(found[4]) - 1}.{kinds[found[3]]}.{found[5]}"


def _resize_sides(size: tuple[int, int], crop_pct: float) -> list[int]:
    return [math.floor(side / crop_pct) for side in size]


def _no_layout(layout: str, why: str) -> UserError:
    return UserError(
        f"--format {layout}: cannot hold this model: {why}. "
        "Use --format onnx or --format torch_export, which hold any network."
    )
