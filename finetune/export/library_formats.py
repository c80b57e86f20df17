"""Common parts of the timm, torchvision and transformers formats: a linear head, a stem of three channels, names of ResNets.

These libraries take only colour images. The stem of a one-channel network is therefore rewritten with three channels, so that
it computes the same function of a grey image repeated to three channels; see :func:`colour_stem`.
"""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from finetune.atomic_files import atomic_path
from finetune.errors import UserError
from finetune.input_spec import InputSpec
from finetune.models.adaptations import PRETRAINED_CHANNELS
from finetune.models.classifier import Classifier
from finetune.models.heads.linear import LinearHead
from finetune.plain import Json
from finetune.safetensors_writer import write_tensors

WEIGHTS = "model.safetensors"
# name -> blocks per stage, block kind: He et al. 2015, the networks that all three libraries lay out alike
RESNETS: dict[str, tuple[tuple[int, ...], str]] = {
    "resnet18": ((2, 2, 2, 2), "basic"),
    "resnet34": ((3, 4, 6, 3), "basic"),
    "resnet50": ((3, 4, 6, 3), "bottleneck"),
    "resnet101": ((3, 4, 23, 3), "bottleneck"),
    "resnet152": ((3, 8, 36, 3), "bottleneck"),
}


def timm_preparation(spec: InputSpec) -> dict[str, Json]:
    """Return the part of a ``pretrained_cfg`` from which timm builds its evaluation transform."""
    return {
        "input_size": [PRETRAINED_CHANNELS, *spec.size],
        "interpolation": spec.interpolation,
        # timm would resize to size / crop_pct and then crop even if both sides are squashed
        "crop_pct": spec.crop_pct if spec.crop_mode == "center" else 1.0,
        "crop_mode": spec.crop_mode,
        "mean": list(spec.mean),
        "std": list(spec.std),
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
        UserError: The stem has another number of channels, or the means are equal and V is not zero.
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
                "this layout cannot hold the folded stem: its second kernel reads a constant channel, and because "
                f"input.mean={list(spec.mean)} is the same for all channels, no three-channel stem computes the same. "
                "Use --format onnx or --format torch_export, or train with input.adapt=expand."
            )
        if spread >= 1e-6:
            per_channel = [kernel - away * constant / spread for kernel, away in zip(per_channel, away_C, strict=True)]
    stem = torch.stack([kernel * std for kernel, std in zip(per_channel, std_C, strict=True)], dim=1)
    return stem.to(weight.dtype).contiguous()


def state_with_linear_head(classifier: Classifier, layout: str) -> dict[str, Tensor]:
    """Return the network's state dict with a three-channel stem, and the head as ``fc.weight`` and ``fc.bias``.

    The head's are divided by the model's temperature, so that whatever opens the folder gives calibrated probabilities.
    """
    if not isinstance(classifier.head, LinearHead):
        raise no_layout(
            layout, f"its classifier is one linear layer, and this head is {classifier.head_settings['name']!r}"
        )
    state = {name: tensor.detach().contiguous() for name, tensor in classifier.backbone.net.state_dict().items()}
    for conv in classifier.backbone.first_convs:
        try:
            state[f"{conv}.weight"] = colour_stem(classifier, conv)
        except UserError as error:
            raise UserError(f"--format {layout}: {error}") from None
    fc = classifier.head.fc
    head = {"fc.weight": fc.weight.detach().contiguous(), "fc.bias": fc.bias.detach().contiguous()}
    if classifier.temperature != 1:
        head = {name: values / classifier.temperature for name, values in head.items()}
    return {**state, **head}


def save_state(state: dict[str, Tensor], folder: Path) -> None:
    """Write the tensors in a folder, in the file that all three libraries read."""
    with atomic_path(folder / WEIGHTS) as part:
        write_tensors(part, state, metadata={"format": "pt"})


def renamed_head(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors with the head's under another name than ``fc``."""
    return {re.sub(r"^fc\.", f"{name}.", key): value for key, value in state.items()}


def plain_resnet(classifier: Classifier) -> str | None:
    """Return the name of a plain ResNet backbone in the spelling of timm and torchvision; None for other networks."""
    backbone = classifier.backbone
    name = backbone.name.partition(".")[0]
    known = (
        backbone.source in ("timm", "torchvision") and name in RESNETS and not backbone.kwargs and backbone.pool is None
    )
    return name if known else None


def resize_sides(size: tuple[int, int], crop_pct: float) -> list[int]:
    """Return the sides to resize to before a crop."""
    return [math.floor(side / crop_pct) for side in size]


def no_layout(layout: str, why: str) -> UserError:
    """Return the error that a layout cannot hold a model."""
    return UserError(
        f"--format {layout}: cannot hold this model: {why}. "
        "Use --format onnx or --format torch_export, which hold any network."
    )
