"""Build the network of a run: the pretrained backbone and the classifier on top of it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.build.python_objects import PythonObjects
from finetune.build.user_objects import user_backbone, user_head, user_modules
from finetune.config.schema import Config
from finetune.counted import counted
from finetune.errors import UserError, shortened
from finetune.models.adaptations import ADAPTATIONS

if TYPE_CHECKING:  # imported where they are used, so that a wrong path is reported before torch is loaded
    from torch import nn

    from finetune.data.image_source import Source
    from finetune.models.backbone import Backbone
    from finetune.models.classifier import Classifier
    from finetune.models.weights_origin import WeightsOrigin

log = logging.getLogger(__name__)

Show = Callable[[str], None]


def network_name(config: Config) -> str:
    """Return the name of the network: the library's, or the class of a user-supplied network.

    >>> network_name(Config())
    'resnet18'
    """
    target = config.backbone._target_
    return config.backbone.name if target is None else target.rpartition(".")[2]


def weights_origin(config: Config) -> "WeightsOrigin":
    """Return the origin and the licence of the initial weights of a configuration."""
    from finetune.models.weights_origin import WeightsOrigin, origin_of

    chosen = config.backbone
    if chosen._target_ is not None and chosen.weights in ("none", "given"):
        return WeightsOrigin(place="the weights of your own module", licence=None)
    return origin_of(source=chosen.source, name=chosen.name, weights=chosen.weights)


def build_pretrained(config: Config, show: Show, *, trusted: bool = False) -> "Backbone":
    """Build the pretrained backbone and report the origin of its weights; its stem is not adapted yet.

    Args:
        config: Checked configuration.
        show: Function that shows a line to the user.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise no user-supplied network is built.

    Raises:
        UserError: The weights are not available, or do not fit.
    """
    from finetune.input_spec import InputSpec
    from finetune.models.build import build_backbone

    chosen, name = config.backbone, network_name(config)
    given = {key: getattr(config.input, key) for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if value is not None
    }
    if chosen._target_ is not None:
        spec = InputSpec(**given, size=image_size(config.input.size) or InputSpec().size)
        backbone = user_backbone(config, input_spec=spec, trusted=trusted)
        start = "as its class initialises them" if chosen.weights == "none" else f"from {chosen.weights}"
        show(f"weights: {name} {start} (seed {config.seed})")
    else:
        backbone = build_backbone(
            chosen.name,
            source=chosen.source,
            weights=chosen.weights,
            pool=chosen.pool,
            seed=config.seed,
            **chosen.kwargs,
        )
        if chosen.weights == "none":
            show(f"weights: {name} starts from random weights (seed {config.seed}), not pretrained")
        else:
            show(f"weights: {name} from {chosen.weights}")
            if warning := weights_origin(config).warning:
                log.warning("%s", warning)
    backbone.input_spec = replace(backbone.input_spec, **given)
    return backbone


def build_model(
    config: Config, source: "Source", show: Show, *, trusted: bool = False, objects: PythonObjects = PythonObjects()
) -> "Classifier":
    """Build the initial network and report the origin of its weights.

    Args:
        config: Checked configuration.
        source: Data set of the run.
        show: Function that shows a line to the user.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise no user-supplied network or head is
            built.
        objects: Objects from Python; a backbone or a head among them is trained in place, not copied.

    Raises:
        UserError: Weights or head do not fit.
    """
    from finetune.models.classifier import adaptation_cost, build_classifier
    from finetune.models.heads import HEADS

    backbone = objects.backbone or build_pretrained(config, show, trusted=trusted)
    classes = source.index.classes
    own, node = objects.head, None
    if own is None and config.head._target_ is not None:
        own, node = user_head(config, num_features=backbone.num_features, num_classes=len(classes), trusted=trusted)
    size = image_size(config.input.size)
    settings: dict[str, Any] = {"name": config.head.name, "drop_rate": config.head.drop_rate}
    if (kind := HEADS.get(config.head.name)) is not None:
        settings |= kind.specific_settings(config.head)
    # weights with an adapted stem have no exact adaptation to compare with
    pretrained_stem = backbone.adapted is None
    if pretrained_stem and not ADAPTATIONS[config.input.adapt].exact and source.decode_options.channels == 1:
        import torch

        from finetune.data.transforms import eval_view

        view = eval_view(replace(backbone.input_spec, channels=1, size=size or backbone.input_spec.size))
        rows = source.index.rows("train")[:32]
        images = torch.stack([view(source.read(int(row))) for row in rows])
        # only the stem is measured, so a linear head replaces a user-supplied one, which fits only its own classes
        head = settings if own is None else "linear"
        cost = adaptation_cost(
            backbone=backbone, head=head, images_BCHW=images, adapt=config.input.adapt, seed=config.seed
        )
        show(
            f"input.adapt={config.input.adapt}: the logits differ by {cost:.1%} from those of the exact adaptation "
            f"(relative, on {len(rows)} training images). input.adapt=fold is exact and as fast."
        )
    classifier = build_classifier(
        backbone,
        head=settings if own is None else own,
        classes=classes,
        channels=source.decode_options.channels,
        size=size,
        adapt=config.input.adapt,
        seed=config.seed,
        multi_label=source.index.multi_label,
        head_target=node,
    )
    if config.head.weights:
        _load_head(classifier, config, source, show, own=own)
    return classifier


# images of a new class whose mean features its row begins with, at most
_IMPRINTED = 200


def _load_head(
    classifier: "Classifier", config: Config, source: "Source", show: Show, *, own: "nn.Module | None"
) -> None:
    """Give the classifier the head that ``head.weights`` names; the rows of classes that it lacks are imprinted.

    Raises:
        UserError: The head belongs to another backbone or to other classes, or cannot be read.
    """
    import torch

    from finetune.data.datamodule import ImageDataModule
    from finetune.models.chunks import run_in_chunks
    from finetune.models.imprinting import merged_names
    from finetune.models.modes import evaluating
    from finetune.models.weights import hash_of_backbone, head_classes, load_head

    given, index = Path(str(config.head.weights)), source.index
    imprinted: dict[str, int] = {}
    file = _head_file(given)
    old = head_classes(file)
    old_names = {config.data.rename.get(name, name) for name in old}

    def embed(images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BD: torch.Tensor = classifier.backbone(classifier.prepare(images_BCHW))
        return features_BD

    @torch.no_grad()
    def features_of(name: str) -> torch.Tensor:
        rows = index.rows("train")
        rows = rows[index.targets[rows] == index.classes.index(name)]
        rows = rows[:: max(1, -(-len(rows) // _IMPRINTED))]
        if name not in old_names:
            imprinted[name] = len(rows)
        data = ImageDataModule(source=source, spec=classifier.input_spec, num_workers=0)
        with evaluating(classifier):
            return (
                torch.zeros(0)
                if not len(rows)
                else torch.cat([run_in_chunks(embed, batch.images) for batch in data.rows_dataloader(rows)])
            )

    classifier.head = load_head(
        file,
        backbone_hash=hash_of_backbone(classifier.backbone),
        classes=index.classes,
        multi_label=classifier.multi_label,
        own=own,
        rename=config.data.rename,
        features_of=None if index.multi_label else features_of,
    )
    merged = [
        f"{new} is the mean of {', '.join(those)}" for new, those in merged_names(config.data.rename, old).items()
    ]
    new = [f"{name} ({counted(number, 'image')})" for name, number in imprinted.items()]
    rows = [f"{counted(len(index.classes) - len(new), 'class', 'classes')} as they were" if new or merged else ""]
    rows += [f"imprinted: {shortened(new)}"] * bool(new) + [f"merged: {shortened(merged)}"] * bool(merged)
    show(f"head: from {config.head.weights}{', ' if new or merged else ''}{'; '.join(filter(None, rows))}")


def _head_file(given: Path) -> Path:
    """Return the file of a head: the one that was given, or that of a run or a bundle.

    Raises:
        UserError: The folder holds no bundle.
    """
    from finetune.bundle import HEAD_WEIGHTS, find_bundle
    from finetune.safe_files import inside

    return inside(find_bundle(given), HEAD_WEIGHTS, of="bundle") if given.is_dir() else given


def build_described_model(
    config: Config, description: Mapping[str, Any], *, trusted: bool = False, objects: PythonObjects = PythonObjects()
) -> "Classifier":
    """Build the network of a run from its description, without the weights, which the run holds.

    Args:
        config: Configuration of the run.
        description: Description of the network, as the run recorded it.
        trusted: Whether the user typed the configuration, or trusts its run.
        objects: Objects from Python, in place of those that the run started with.

    Raises:
        UserError: The description is damaged, or a class cannot be built.
    """
    from finetune.models.classifier import classifier_from_description
    from finetune.models.description import description_problems
    from finetune.models.user_modules import user_classes

    if problems := description_problems(dict(description)):
        raise UserError(f"run.json: its model is damaged. {shortened(problems)}.")
    modules = user_modules(config, description, trusted=trusted)
    if objects.backbone is not None and "backbone" in user_classes(description):
        modules["backbone"] = objects.backbone.net
    if objects.head is not None:
        modules["head"] = objects.head
    return classifier_from_description(description, modules=modules)


def image_size(value: Any) -> tuple[int, int] | None:
    """Return ``input.size`` as height and width.

    Raises:
        UserError: The value is neither a whole number nor two of them.

    >>> image_size(64)
    (64, 64)
    """
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides):
        raise UserError(f"input.size={value!r}: must be one positive whole number, or [height, width].")
    return sides[0], sides[1]
