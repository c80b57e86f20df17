"""The classifier: normalisation, channel adaptation, backbone and head in one module, from raw images to logits."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune.confidence.conformal import ConformalCurve
from finetune.confidence.selective import RiskCoverage
from finetune.confidence.unknown import UnknownScore
from finetune.errors import UserError, first_line, shortened, type_in_words
from finetune.file_errors import out_of_memory
from finetune.file_schema import THRESHOLD
from finetune.input_spec import InputSpec
from finetune.models.backbone import Backbone
from finetune.models.build import backbone_from_description
from finetune.models.channels import InputAdapter
from finetune.models.heads import build_head
from finetune.models.heads.kind import Head
from finetune.models.modes import evaluating
from finetune.models.raw_images import at_input_size, check_layout, check_range
from finetune.models.residual import Bias, Scale
from finetune.models.sources import fit_to_size
from finetune.models.stages import is_norm
from finetune.models.user_modules import OWN, check_head, class_name, user_classes, user_head_settings
from finetune.phases import HEAD
from finetune.plain import Json

# B = batch, C = channels of the images, S = input channels of the stem, H/W = image height/width
# D = features, K = classes

log = logging.getLogger(__name__)

KINDS = ("norms", "bias", "gates", "head")
_NET_PREFIX = "backbone.net."
_HEAD_PREFIX = "head."


class Classifier(nn.Module):
    """A network from ``uint8 (B, C, H, W)`` of any size, or float in [0, 1] of the same shape, to logits ``(B, K)``.

    Args:
        backbone: Network without classifier, its stem adapted to ``input_spec.channels``.
        head: Module from features ``(B, D)`` to logits ``(B, K)``: from :mod:`finetune.models.heads`, or user-supplied.
        input_spec: Specification of the images; mean and std are those of the pretrained network.
        adapt: Adaptation from ``input_spec.channels`` to the channels of the stem.
        classes: Class names in the order of the logits.
        multi_label: Whether an image may show several classes or none; each logit then stands by itself.
        head_target: Node that built a user-supplied head, if a configuration named it.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        input_spec: InputSpec,
        adapt: str,
        classes: Sequence[str],
        multi_label: bool = False,
        head_target: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # divisor of the logits, fitted on validation images after training: no part of the weights
        self.temperature = 1.0
        # likewise: how far an image is from the training images, and how accurate confident answers are
        self.unknown: UnknownScore | None = None
        self.selective: RiskCoverage | None = None
        self.conformal: ConformalCurve | None = None
        # with several labels: the probability above which each class is predicted
        self.thresholds: tuple[float, ...] = (THRESHOLD,) * len(classes)
        if isinstance(head, Head):
            assert head.settings["num_classes"] == len(classes)
            assert head.settings["num_features"] == backbone.num_features
        self.input = InputAdapter(channels=input_spec.channels, adapt=adapt, mean=input_spec.mean, std=input_spec.std)
        self.backbone = backbone
        self.head = head
        self.input_spec = input_spec
        self.adapt = adapt
        self.classes = tuple(classes)
        self.multi_label = multi_label
        self.head_target = head_target

    @property
    def head_settings(self) -> dict[str, Json]:
        """Return plain JSON values that describe the head: its name and settings, or the user-supplied class."""
        if isinstance(self.head, Head):
            return dict(self.head.settings)
        widths = {"num_features": self.backbone.num_features, "num_classes": len(self.classes)}
        return user_head_settings(self.head, **widths, target=self.head_target)

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
            *kinds: Kinds of parameters. ``norms``: the affine parameters of normalisation layers. ``bias``: the biases of
                all layers, those of norms among them (BitFit, arXiv 2106.10199). ``gates``: the
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
                # timm names the halves of an attention layer's bias q_bias and v_bias
                if name == "bias" or name.endswith("_bias"):
                    names_by_kind["bias"].add(f"{path}.{name}")
        chosen: set[str] = set()
        for kind in kinds:
            if kind not in KINDS:
                raise UserError(
                    f"schedule.phases.parameters={kind!r}: not a kind of parameters. Kinds: all, norms, bias, gates."
                )
            if not names_by_kind[kind]:
                hint = " Gates: backbone=residual backbone.kwargs.scaling=layerscale." if kind == "gates" else ""
                raise UserError(f"schedule.phases.parameters={kind!r}: {self.backbone.name!r} has none.{hint}")
            chosen |= names_by_kind[kind] | (names_by_kind["norms"] if kind == "gates" else set())
        return frozenset(chosen)

    def prepare(self, images_BCHW: Tensor) -> Tensor:
        """Make the input of the backbone, ``(B, S, H, W)``: scaled to [0, 1] if uint8, normalised, channels adapted.

        Raises:
            UserError: The number of channels or dimensions is wrong, or the images are integers other than uint8.
        """
        check_layout(images_BCHW, self.input_spec)
        if images_BCHW.dtype == torch.uint8:
            images_BCHW = images_BCHW.to(self.input.mean.dtype) / 255
        images_BSHW: Tensor = self.input(images_BCHW)
        return images_BSHW

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Compute the features ``(B, D)`` of raw images; see :meth:`forward`."""
        features_BD: Tensor = self.backbone(self.prepare(self._at_input_size(images_BCHW)))
        return features_BD

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute the logits ``(B, K)`` of raw images.

        Images of exactly the input size are used as they are: they are taken to be views already, as in training. Images of
        any other size are resized and cropped as ``input_spec`` says, exactly as ``finetune predict`` and an export do.

        The logits of a calibrated model are divided by its ``temperature``: their softmax is its probabilities, and multiplied by
        it they are those of training.

        Args:
            images_BCHW: uint8 from 0 to 255, or float in [0, 1].

        Raises:
            UserError: The channels are not the second dimension, or the values are not on the scale of their type.
        """
        return self.logits(self.embed(images_BCHW))

    def logits(self, features_BD: Tensor) -> Tensor:
        """Compute the logits ``(B, K)`` of features, divided by the model's temperature."""
        logits_BK: Tensor = self.head(features_BD)
        return logits_BK if self.temperature == 1 else logits_BK / self.temperature

    def unfit(self) -> None:
        """Drop what was fitted on validation images for weights that are about to change."""
        self.temperature, self.unknown, self.selective, self.conformal = 1.0, None, None, None
        self.thresholds = (THRESHOLD,) * len(self.classes)

    def _at_input_size(self, images_BCHW: Tensor) -> Tensor:
        check_layout(images_BCHW, self.input_spec)
        # a graph that is traced or compiled cannot read values, and a training step on a GPU would wait for them
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # torch
        if not traced and (images_BCHW.device.type == "cpu" or not torch.is_grad_enabled()):
            check_range(images_BCHW)
        return at_input_size(images_BCHW, self.input_spec)

    def probabilities(self, logits_BK: Tensor) -> Tensor:
        """Turn logits into probabilities ``(B, K)`` in single precision: softmax, or sigmoid if multi-label."""
        logits_BK = logits_BK.float()
        return logits_BK.sigmoid() if self.multi_label else logits_BK.softmax(1)

    def describe(self) -> dict[str, Json]:
        """Return plain JSON values from which :func:`classifier_from_description` builds the same architecture."""
        return {
            "backbone": self.backbone.describe(),
            "head": self.head_settings,
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
    backbone: Backbone,
    *,
    head: str | Mapping[str, Any] | nn.Module = "linear",
    classes: Sequence[str],
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    adapt: str = "expand",
    seed: int = 0,
    multi_label: bool = False,
    head_target: Mapping[str, Any] | None = None,
) -> Classifier:
    """Put a head on a backbone, and adapt its stem (in place) to the channels of the images.

    Args:
        backbone: Network to use; it is not copied.
        head: Name of a head (``linear``, ``mlp`` or ``cosine``); its settings, ``name`` and the keywords of
            :func:`finetune.models.heads.build_head` except the two sizes; or a module of your own from features
            ``(B, D)`` to logits ``(B, K)``, which is used as it is. ``backbone.num_features`` is D.
        classes: Class names in the order of the logits.
        channels: Number of channels of the images; None for those that the backbone takes.
        size: Height and width in pixels; None for the size that the weights were trained with.
        adapt: Channel adaptation, one of :data:`finetune.models.adaptations.ADAPTATIONS`.
        seed: Seed of all random weights made here: those of a new stem and of the head.
        multi_label: Whether an image may show several classes or none.
        head_target: Node that built a head of your own, if a configuration named it.

    Raises:
        UserError: Channels and adaptation cannot be combined, a setting of the head is out of range, or a head of your own
            does not take the features or does not give K logits.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"backbone: must be what finetune.build_backbone returns. It is {type_in_words(backbone)}. Use "
            "finetune.build_backbone(module, stages={...}) for a network of your own."
        )
    names = [str(name) for name in classes]
    if isinstance(classes, str) or len(set(names)) != len(names) or len(names) < 2:
        raise UserError(f"classes={shortened(names)}: must be at least two different names.")
    widths: dict[str, int] = {"num_features": backbone.num_features, "num_classes": len(names)}
    if isinstance(head, nn.Module):
        check_head(head, **widths)
        made: nn.Module = head
    else:
        settings: dict[str, Any] = {"name": head} if isinstance(head, str) else dict(head)
        given = {key: value for key, value in settings.items() if key not in widths}
        made = build_head(**{**given, **widths, "seed": seed})
    channels = len(backbone.input_spec.mean) if channels is None else channels
    fit_to_size(backbone, size)
    backbone.adapt_input(channels=channels, adapt=adapt, seed=seed)
    spec = replace(backbone.input_spec, channels=channels, size=size or backbone.input_spec.size)
    classifier = Classifier(
        backbone=backbone,
        head=made,
        input_spec=spec,
        adapt=adapt,
        classes=names,
        multi_label=multi_label,
        head_target=head_target,
    )
    if backbone.source == OWN:
        _check_takes_images(classifier)
    return classifier


@torch.no_grad()
def _check_takes_images(classifier: Classifier) -> None:
    """Check by a forward pass that a user-supplied network takes images of the chosen size and channels.

    Raises:
        UserError: The network does not take them.
    """
    spec = classifier.input_spec
    parameter = next(classifier.backbone.parameters())
    zeros = torch.zeros(2, spec.channels, *spec.size, dtype=parameter.dtype, device=parameter.device)
    rule = (
        f"size={list(spec.size)}: {classifier.backbone.name} must give features (B, {classifier.backbone.num_features}) for "
        f"images of this size. A forward pass of zeros {tuple(zeros.shape)}"
    )
    try:
        with torch.random.fork_rng(devices=[]), evaluating(classifier):
            features_BD = classifier.embed(zeros)
    except Exception as error:  # the user's code may raise anything
        if out_of_memory(error):
            raise
        why = first_line(error, with_type=True).rstrip(".")
        raise UserError(f"{rule} failed with {why}. Choose another size.") from error
    if features_BD.shape != (2, classifier.backbone.num_features):
        raise UserError(f"{rule} gave {tuple(features_BD.shape)}. Choose another size.")


def classifier_from_description(
    description: Mapping[str, Any], *, modules: Mapping[str, nn.Module] | None = None
) -> Classifier:
    """Build the architecture that :meth:`Classifier.describe` described, with random weights; download nothing.

    Args:
        description: Plain values.
        modules: User-supplied modules that the description needs, as ``head`` and ``backbone``; their weights are not changed.

    Raises:
        UserError: The description is incomplete or does not fit this version, or a module is missing, not needed or does not
            fit.
    """
    # descriptions written before multi-label support lack the key
    description = {"multi_label": False, **description}
    expected = {"backbone", "head", "input_spec", "adapt", "classes", "multi_label"}
    if set(description) != expected:
        raise UserError(f"model description: needs the keys {sorted(expected)}. Found {sorted(description)}.")
    given, needed = dict(modules or {}), user_classes(description)
    if extra := sorted(set(given) - set(needed)):
        raise UserError(
            f"modules[{extra[0]!r}]: not needed. This model needs {', '.join(needed) or 'no module of your own'}. Leave it out."
        )
    if missing := [f"{part} ({needed[part]})" for part in needed if part not in given]:
        raise UserError(f"modules: must hold the classes that this model needs. Missing: {', '.join(missing)}.")
    for part, module in given.items():
        if not isinstance(module, nn.Module):
            raise UserError(f"modules[{part!r}]: must be an nn.Module. It is {type_in_words(module)}.")
        if class_name(module) != needed[part]:
            log.warning("%s: saved with %s, loaded into %s.", part, needed[part], class_name(module))
    spec, settings = InputSpec.from_dict(description["input_spec"]), description["head"]
    backbone = backbone_from_description(
        description["backbone"], module=given.get("backbone"), adapted=(spec.channels, description["adapt"])
    )
    backbone.adapt_input(channels=spec.channels, adapt=description["adapt"], seed=0)
    if (own := given.get("head")) is not None:
        check_head(own, num_features=backbone.num_features, num_classes=len(description["classes"]))
    return Classifier(
        backbone=backbone,
        head=build_head(**settings) if own is None else own,
        input_spec=spec,
        adapt=description["adapt"],
        classes=description["classes"],
        multi_label=description["multi_label"],
        head_target=settings.get("target") if own is not None else None,
    )


@torch.no_grad()
def adaptation_cost(
    *, backbone: Backbone, head: str | Mapping[str, Any], images_BCHW: Tensor, adapt: str, seed: int = 0
) -> float:
    """Measure how far an adaptation to one channel moves the logits from those of ``expand``.

    Args:
        backbone: Pretrained network whose stem is not yet adapted; it is copied and left unchanged.
        head: Name or settings of the head, as in :func:`build_classifier`; both networks get the same seeded head.
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
            head=head,
            classes=("0", "1"),
            channels=1,
            size=(images_BCHW.shape[-2], images_BCHW.shape[-1]),
            adapt=way,
            seed=seed,
        )
        dtype = next(backbone.parameters()).dtype
        logits[way] = model.to(dtype).eval()(images_BCHW)
    reference = logits["expand"]
    return float((logits[adapt] - reference).norm() / reference.norm())
