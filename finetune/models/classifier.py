"""The classifier: normalisation, channel adaptation, backbone and head in one module, from raw images to logits."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import UserError
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone, backbone_from_description
from finetune.models.channels import InputAdapter
from finetune.models.heads import Head, build_head
from finetune.models.residual import Bias, Scale
from finetune.models.stages import is_norm

# B = batch, C = channels of the user's image, S = input channels of the stem, H/W = image height/width
# D = features, K = classes

HEAD = "head"
KINDS = ("norms", "gates", "head")
_NET_PREFIX = "backbone.net."
_HEAD_PREFIX = "head."


class Classifier(nn.Module):
    """A network from ``uint8 (B, C, H, W)``, or float in [0, 1] of the same shape, to logits ``(B, K)``.

    Args:
        backbone: Network without classifier, its stem adapted to ``input_spec.channels``.
        head: Module from features to logits.
        input_spec: Specification of the images; mean and std are those of the pretrained network.
        adapt: Adaptation from ``input_spec.channels`` to the channels of the stem.
        classes: Class names in the order of the logits.
        multi_label: Whether an image may show several classes or none; each logit then stands by itself.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: Head,
        input_spec: InputSpec,
        adapt: str,
        classes: Sequence[str],
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        assert head.settings["num_classes"] == len(classes)
        assert head.settings["num_features"] == backbone.num_features
        self.input = InputAdapter(channels=input_spec.channels, adapt=adapt, mean=input_spec.mean, std=input_spec.std)
        self.backbone = backbone
        self.head = head
        self.input_spec = input_spec
        self.adapt = adapt
        self.classes = tuple(classes)
        self.multi_label = multi_label

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the stage names in order from the input; the last is ``head``."""
        return (*self.backbone.stages, HEAD)

    def stage_of(self, name: str) -> str:
        """Return the stage of a parameter or of an entry of the state dict, by its name in this module.

        Raises:
            KeyError: There is no such name, or it is a constant of the normalisation, which belongs to no stage.
        """
        if name.startswith(_HEAD_PREFIX):
            return HEAD
        if name.startswith(_NET_PREFIX):
            return self.backbone.stage_of(name.removeprefix(_NET_PREFIX))
        raise KeyError(f"{name!r} belongs to no stage")

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """Return all modules of backbone and head by stage, each once; set their modes one by one, not recursively."""
        return {**self.backbone.stage_modules(), HEAD: list(self.head.modules())}

    def select(self, *kinds: str) -> frozenset[str]:
        """Return the names of the parameters of some kinds, to train few parameters of the whole network.

        Args:
            *kinds: Kinds of parameters. ``norms``: the affine parameters of normalisation layers. ``gates``: the
                factors of residual branches (SkipInit, LayerScale, Fixup with its biases), and the norms as well.
                ``head``: the head.

        Returns:
            Names as in :meth:`named_parameters`.

        Raises:
            UserError: A kind is unknown, or the network has no parameters of that kind.
        """
        names_by_kind: dict[str, set[str]] = {kind: set() for kind in ("", *KINDS)}
        for path, module in self.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                names_by_kind[_kind(path, module, name)].add(f"{path}.{name}")
        chosen: set[str] = set()
        for kind in kinds:
            if kind not in KINDS:
                raise UserError(
                    f"schedule.phases.parameters={kind!r}: not a kind of parameters. Kinds: all, norms, gates."
                )
            if not names_by_kind[kind]:
                hint = " Gates: backbone=residual backbone.kwargs.scaling=layerscale." if kind == "gates" else ""
                raise UserError(f"schedule.phases.parameters={kind!r}: {self.backbone.name!r} has none.{hint}")
            chosen |= names_by_kind[kind] | (names_by_kind["norms"] if kind == "gates" else set())
        return frozenset(chosen)

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """Make the input of the backbone, ``(B, S, H, W)``: scaled to [0, 1] if uint8, normalised, channels adapted.

        Raises:
            ValueError: The number of channels or dimensions is wrong, or the images are integers other than uint8.
        """
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != self.input_spec.channels:
            raise ValueError(
                f"images of shape {tuple(images_BCHW.shape)}: this model takes (B, {self.input_spec.channels}, H, W)."
            )
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = images_BCHW.to(self.input.mean.dtype) / 255
        elif not images_BCHW.is_floating_point():
            raise ValueError(f"images of type {images_BCHW.dtype}: this model takes uint8, or float in [0, 1].")
        images_BSHW: Tensor = self.input(images_BCHW)
        return images_BSHW

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Compute the features ``(B, D)`` of raw images."""
        features_BD: Tensor = self.backbone(self.prepare(images_BCHW))
        return features_BD

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute the logits ``(B, K)`` of raw images."""
        logits_BK: Tensor = self.head(self.embed(images_BCHW))
        return logits_BK

    def probabilities(self, logits_BK: Tensor) -> Tensor:
        """Turn logits into probabilities ``(B, K)`` in single precision: softmax, or sigmoid if multi-label."""
        logits_BK = logits_BK.float()
        return logits_BK.sigmoid() if self.multi_label else logits_BK.softmax(1)

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values from which :func:`classifier_from_description` builds the same architecture."""
        return {
            "backbone": self.backbone.describe(),
            "head": dict(self.head.settings),
            "input_spec": self.input_spec.to_dict(),
            "adapt": self.adapt,
            "classes": list(self.classes),
            "multi_label": self.multi_label,
        }


def _kind(path: str, module: nn.Module, name: str) -> str:
    """Return the kind of a parameter for :meth:`Classifier.select`; the empty kind is everything else."""
    if path == HEAD or path.startswith(_HEAD_PREFIX):
        return "head"
    if isinstance(module, (Scale, Bias)) or name == "gamma":  # timm calls the factors of LayerScale gamma
        return "gates"
    return "norms" if is_norm(module) else ""


def build_classifier(
    *,
    backbone: Backbone,
    head_settings: Mapping[str, Any],
    classes: Sequence[str],
    channels: int,
    size: tuple[int, int] | None = None,
    adapt: str = "expand",
    seed: int = 0,
    multi_label: bool = False,
) -> Classifier:
    """Put a new head on a backbone, and adapt its stem (in place) to the channels of the images.

    Args:
        backbone: Network to use; it is not copied.
        head_settings: ``name`` and the keywords of :func:`finetune.models.heads.build_head` except the two sizes.
        classes: Class names in the order of the logits.
        channels: Number of channels of the images.
        size: Height and width in pixels; None for the size the weights were trained with.
        adapt: Channel adaptation, one of :data:`finetune.models.channels.ADAPTATIONS`.
        seed: Seed of all random weights made here: those of a new stem and of the head.
        multi_label: Whether an image may show several classes or none.

    Raises:
        UserError: Channels and adaptation cannot be combined, or a setting of the head is out of range.
    """
    given = {key: value for key, value in head_settings.items() if key not in ("num_features", "num_classes")}
    head = build_head(**given, num_features=backbone.num_features, num_classes=len(classes), seed=seed)
    backbone.check_size(size)
    backbone.adapt_input(channels=channels, adapt=adapt, seed=seed)
    spec = replace(backbone.input_spec, channels=channels, size=size or backbone.input_spec.size)
    return Classifier(
        backbone=backbone, head=head, input_spec=spec, adapt=adapt, classes=classes, multi_label=multi_label
    )


def classifier_from_description(description: Mapping[str, Any]) -> Classifier:
    """Build the architecture that :meth:`Classifier.describe` described, with random weights; download nothing.

    Raises:
        UserError: The description is incomplete or does not fit this version.
    """
    # descriptions written before multi-label support lack the key
    description = {"multi_label": False, **description}
    expected = {"backbone", "head", "input_spec", "adapt", "classes", "multi_label"}
    if set(description) != expected:
        raise UserError(f"model description: needs the keys {sorted(expected)}. Found {sorted(description)}.")
    spec = InputSpec.from_dict(description["input_spec"])
    backbone = backbone_from_description(description["backbone"])
    backbone.adapt_input(channels=spec.channels, adapt=description["adapt"], seed=0)
    return Classifier(
        backbone=backbone,
        head=build_head(**description["head"]),
        input_spec=spec,
        adapt=description["adapt"],
        classes=description["classes"],
        multi_label=description["multi_label"],
    )


@torch.no_grad()
def adaptation_cost(
    *, backbone: Backbone, head_settings: Mapping[str, Any], images_BCHW: Tensor, adapt: str, seed: int = 0
) -> float:
    """Measure how far an adaptation to one channel moves the logits from those of ``expand``.

    Args:
        backbone: Pretrained network whose stem is not yet adapted; it is copied and left unchanged.
        head_settings: Settings of the head, as in :func:`build_classifier`; both networks get the same seeded head.
        images_BCHW: One-channel images, ``uint8`` or float in [0, 1].
        adapt: Adaptation to compare with ``expand``.
        seed: Seed of the head, and of the stem for ``reinit``.

    Returns:
        Euclidean norm of the difference divided by the norm of the logits of ``expand``.
    """
    logits = {}
    for way in ("expand", adapt):
        model = build_classifier(
            backbone=copy.deepcopy(backbone),
            head_settings=head_settings,
            classes=("0", "1"),
            channels=1,
            adapt=way,
            seed=seed,
        )
        dtype = next(backbone.parameters()).dtype
        logits[way] = model.to(dtype).eval()(images_BCHW)
    reference = logits["expand"]
    return float((logits[adapt] - reference).norm() / reference.norm())
