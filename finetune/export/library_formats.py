"""The trained network in the layout of other libraries: folders for timm, torchvision and transformers.

These libraries take colour images only. The stem of a one-channel network is therefore rewritten with three channels, so that
it computes the same function of a grey image repeated to three channels; see :func:`colour_stem`.
"""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from finetune.atomic_files import atomic_path, write_json
from finetune.errors import UserError
from finetune.export.export_metadata import KEY, provenance
from finetune.input_spec import InputSpec
from finetune.models.adaptations import PRETRAINED_CHANNELS
from finetune.models.classifier import Classifier
from finetune.models.heads.linear import LinearHead
from finetune.models.own_modules import OWN
from finetune.plain import Json
from finetune.safetensors_writer import write_tensors

WEIGHTS = "model.safetensors"
WITHOUT_TIMM = "without_timm"
# name -> blocks per stage, block kind: He et al. 2015, the networks that all three libraries lay out alike
RESNETS: dict[str, tuple[tuple[int, ...], str]] = {
    "resnet18": ((2, 2, 2, 2), "basic"),
    "resnet34": ((3, 4, 6, 3), "basic"),
    "resnet50": ((3, 4, 6, 3), "bottleneck"),
    "resnet101": ((3, 4, 23, 3), "bottleneck"),
    "resnet152": ((3, 8, 36, 3), "bottleneck"),
}
_PILLOW_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def export_timm(classifier: Classifier, folder: Path) -> None:
    """Write a folder for ``timm.create_model("local-dir:FOLDER", pretrained=True)``, with data config and label names.

    Raises:
        UserError: The network does not come from timm, or the layout cannot hold its head or stem.
    """
    net = classifier.backbone
    plain = _plain_resnet(classifier)
    if net.source != "timm" and plain is None:
        origin = "is a class of the user's" if net.source == OWN else f"comes from {net.source}"
        raise _no_layout("timm", f"the network {net.name!r} {origin}")
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
    """Write a folder with a state dict for ``torchvision.models.NAME(num_classes=K).load_state_dict`` and the class names.

    Raises:
        UserError: torchvision has no such network, or the layout cannot hold its head, stem or crop.
    """
    name = _plain_resnet(classifier)
    if name is None and classifier.backbone.source == "torchvision" and not classifier.backbone.kwargs:
        name = classifier.backbone.name
    if name is None:
        raise _no_layout("torchvision", f"torchvision has no matching layout for {classifier.backbone.name!r}")
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
    """Write a folder for ``transformers.pipeline("image-classification", model=FOLDER)``; timm prepares its images.

    transformers' own processors resize with other filter weights and round half a pixel of the crop down, while timm,
    torchvision and our evaluation round it to even: a quarter of all images would be cropped one pixel off. transformers'
    ``TimmWrapperImageProcessor`` runs timm's transform instead. ``without_timm/`` holds a processor that does not need timm.

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


def _timm_preparation(spec: InputSpec) -> dict[str, Json]:
    """Return the part of a ``pretrained_cfg`` from which timm builds its evaluation transform."""
    return {
        "input_size": [PRETRAINED_CHANNELS, *spec.size],
        "interpolation": spec.interpolation,
        # timm would resize to size / crop_pct and then crop even where both sides are squashed
        "crop_pct": spec.crop_pct if spec.crop_mode == "center" else 1.0,
        "crop_mode": spec.crop_mode,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def _bit_preparation(spec: InputSpec) -> dict[str, Json]:
    """Describe transformers' own processor, which crops a quarter of images one pixel off; see export_transformers."""
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
    """Return the weights ``(O, 3, k, k)`` of a first convolution for a normalised colour image, or a grey one repeated.

    A stem of one channel, with or without the constant channel of ``fold``, computes ``W * (g - m) / s + V * 1``. On three
    channels ``(g - m_c) / s_c`` the kernels ``s_c U_c`` compute the same, border included, if::

        sum_c U_c = W / s          sum_c m_c U_c = W m / s - V

    ``U_c = W / (3 s) - (m_c - m) V / sum_c (m_c - m)^2``, with m the average of the m_c, satisfies both. Without V the solution
    always exists; with V the means must differ.

    Args:
        classifier: Trained model.
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
    """Return the network's state dict with a three-channel stem, and the head as ``fc.weight`` and ``fc.bias``."""
    if not isinstance(classifier.head, LinearHead):
        raise _no_layout(
            layout, f"its classifier is one linear layer, and this head is {classifier.head_settings['name']!r}"
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
    """Return the name of a plain ResNet backbone in the spelling of timm and torchvision; None for other networks."""
    backbone = classifier.backbone
    name = backbone.name.partition(".")[0]
    known = backbone.source in ("timm", "torchvision") and name in RESNETS and not backbone.kwargs
    return name if known else None


def _transformers_architecture(depths: tuple[int, ...], layer: str) -> dict[str, Json]:
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
    """Translate a plain ResNet's tensor name, such as ``layer1.0.conv1.weight``, to transformers' name.

    >>> _transformers_name("layer2.0.downsample.1.bias")
    'resnet.encoder.stages.1.layers.0.shortcut.normalization.bias'
    >>> _transformers_name("layer1.1.bn2.weight")
    'resnet.encoder.stages.0.layers.1.layer.1.normalization.weight'
    """
    kinds = {"conv": "convolution", "bn": "normalization"}
    if key.startswith("fc."):
        return key.replace("fc.", "classifier.1.")
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        return f"resnet.embedder.embedder.{kinds[match[1]]}.{match[2]}"
    match = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)", key)
    assert match, f"{key} is not a tensor of a plain ResNet"
    layer = f"resnet.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}"
    if match[3] == "downsample.":
        return f"{layer}.shortcut.{('convolution', 'normalization')[int(match[4])]}.{match[5]}"
    return f"{layer}.layer.{int(match[4]) - 1}.{kinds[match[3]]}.{match[5]}"


def _resize_sides(size: tuple[int, int], crop_pct: float) -> list[int]:
    return [math.floor(side / crop_pct) for side in size]


def _no_layout(layout: str, why: str) -> UserError:
    return UserError(
        f"--format {layout}: cannot hold this model: {why}. "
        "Use --format onnx or --format torch_export, which hold any network."
    )
