"""Builds the objects of a run from its configuration: source, network, batches, optimizers, losses and the Trainer."""

import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.atomic_files import make_folder, sync_folder
from finetune.build.user_objects import own_backbone, own_head, own_loss, own_modules, own_transform
from finetune.build.phases import build_phases as build_phases
from finetune.config.checks import split_settings
from finetune.config.schema import Config, DataConfig
from finetune.config.trust import DEFAULT_OPTIMIZER, TRAINER, instantiate, optimizer_class
from finetune.distributed import RUN_DIR_OF_RUN, is_rank_zero, started_together
from finetune.errors import UserError, did_you_mean, shortened
from finetune.file_errors import in_words
from finetune.file_lock import LOCK, FolderLock
from finetune.results import Imbalance

if TYPE_CHECKING:  # imported where they are used, so that a wrong path is reported before torch is loaded
    from torch import nn

    from finetune.data.datamodule import ImageDataModule
    from finetune.data.decode import DecodeOptions
    from finetune.data.registry import Source
    from finetune.models.backbone import Backbone
    from finetune.models.classifier import Classifier
    from finetune.plain import Json
    from finetune.training.param_groups import OptimizerFactory, ParamGroups
    from finetune.training.phases import Phase

Say = Callable[[str], None]
NATIVE_CHANNELS = {"digits": 1}
# keys of `data` that concern loading, not the source of the images
_OF_THE_LOADER = ("source", "balanced", "batch_size", "eval_batch_size", "num_workers", "augment", "transform")


def choose_run_dir(config: Config) -> Path:
    """Choose the folder of a new run, as far as it is known before :func:`make_run_dir` creates it.

    A process that DDP started uses the folder of the process that started it.

    Raises:
        UserError: The given folder is not empty, or none is given and the processes, which were started from outside, could
            not agree on one.
    """
    inherited = os.environ.get(RUN_DIR_OF_RUN)
    if inherited and not is_rank_zero():
        return Path(inherited)
    if not config.run_dir and (started_together() or config.trainer.get("num_nodes", 1) != 1):
        raise UserError(
            "run_dir: must be given where the processes of a run are started by torchrun, by a cluster or by hand: all of "
            "them must name the same folder. Write run_dir=DIR, on a disk that every node sees."
        )
    if config.run_dir:
        folder = Path(config.run_dir).expanduser()
        if not is_rank_zero():
            return folder
        _must_be_empty(folder, config)
        return folder
    name = config.name or f"{config.data.source}-{network_name(config)}-{config.schedule.name}"
    return Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name.replace('/', '_')}"


def network_name(config: Config) -> str:
    """Return the name of the network: the library's, or the class of a network of the user's.

    >>> network_name(Config())
    'resnet18'
    """
    target = config.backbone._target_
    return config.backbone.name if target is None else target.rpartition(".")[2]


@contextmanager
def make_run_dir(config: Config, folder: Path) -> Iterator[Path]:
    """Create the folder of a new run and hold it for this process while the block runs.

    If several processes want the same folder, only one gets it. In the other processes that DDP started nothing is created,
    because the first process creates the folder.

    Args:
        config: Configuration of the run.
        folder: Folder from :func:`choose_run_dir`.

    Yields:
        The folder; with a number appended if none was given and another process was faster.

    Raises:
        UserError: Another process holds the given folder, or the folder is no longer empty.
    """
    if not is_rank_zero():
        yield folder
        return
    if config.run_dir:
        name = f"run_dir='{config.run_dir}'"
        try:
            make_folder(folder)
        except OSError as error:
            raise UserError(in_words(error, folder, "cannot be made", name=name)) from error
        with FolderLock(folder, name=name):
            _must_be_empty(folder, config)
            yield folder
        return
    for free in _numbered(folder):
        try:
            make_folder(free.parent)
            free.mkdir()
            sync_folder(free.parent)
        except FileExistsError:
            continue
        except OSError as error:
            reason = in_words(error, free, "cannot be made", name=f"run_dir={str(free)!r}")
            raise UserError(f"{reason} Or choose another place: run_dir=DIR.") from error
        with FolderLock(free, name=f"run_dir='{free}'"):
            yield free
        return


def _numbered(base: Path) -> Iterator[Path]:
    """Yield a path, then the path with -2, -3, ... appended."""
    yield base
    yield from (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))


def _must_be_empty(folder: Path, config: Config) -> None:
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise UserError(
            f"run_dir='{config.run_dir}': must be new or empty. It is not empty. "
            f"Choose another folder, or resume that run: finetune resume {config.run_dir}"
        )


def check_typed_places(config: Config) -> None:
    """Refuse missing data or weights with the paths that the user typed, before these are made absolute.

    Raises:
        UserError: A path does not exist.
    """
    data, weights = config.data, config.backbone.weights
    typed = {"folder": data.root, "manifest": data.path}.get(data.source)
    places = [*(typed if isinstance(typed, list) else [typed]), weights if _is_path(weights) else None]
    if any(place and not Path(str(place)).expanduser().exists() for place in places):
        check_paths(config)


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with paths of data and weights that do not depend on the working directory.

    A run can be resumed, tested and reported from any directory, also after its folder has been moved.

    Raises:
        UserError: A path is not valid UTF-8, so the files of a run cannot store it.
    """
    data, backbone, head = config.data, config.backbone, config.head
    for key, place in (("data.root", data.root), ("data.path", data.path), ("run_dir", config.run_dir)):
        for one in place if isinstance(place, list) else [place]:
            _must_be_utf8(key, _absolute(str(one)) if one else "")
    root = "data" if data.source == "torchvision" and data.root is None else data.root
    if isinstance(root, str) and root:
        root = _absolute(root)
    elif isinstance(root, list):
        root = [_absolute(str(one)) for one in root]
    return replace(
        config,
        data=replace(data, root=root, path=data.path and _absolute(data.path)),
        backbone=replace(
            backbone, weights=_absolute(backbone.weights) if _is_path(backbone.weights) else backbone.weights
        ),
        head=replace(head, weights=head.weights and _absolute(head.weights)),
    )


def check_data_is_there(config: Config, *, command: str) -> None:
    """Check that the data of a run is still where it was when the run started.

    Args:
        config: Configuration of the run.
        command: Command that takes ``data.root=`` or ``data.path=``, for the message.

    Raises:
        UserError: The data is no longer there.
    """
    if config.data.source not in ("folder", "manifest", "huggingface"):
        return
    key = "root" if config.data.source == "folder" else "path"
    value = getattr(config.data, key)
    for place in value if isinstance(value, list) else [value]:
        if place and not Path(place).expanduser().exists():
            raise UserError(
                f"data.{key}={str(place)!r}: no longer exists. The run was trained on data at that path. If it has moved, "
                f"give its new path: {command} data.{key}={'DIR' if key == 'root' else 'PATH'}"
            )


def _must_be_utf8(key: str, path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{key}={path.encode('utf-8', 'backslashreplace').decode('utf-8')!r}: must be a name in UTF-8. It holds bytes that "
            "are not UTF-8. Rename the folder, or give a link to it with another name."
        ) from None


def _is_path(weights: str) -> bool:
    looks_like_path = "/" in weights or weights.endswith((".safetensors", ".pth", ".pt", ".ckpt"))
    return looks_like_path and not weights.startswith("hub:")


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def check_paths(config: Config, *, training: bool = True) -> None:
    """Check the location of the data as far as possible before torch is imported, which takes seconds.

    Args:
        config: Checked configuration.
        training: Whether every class needs a training image.

    Raises:
        UserError: The folder is missing or holds no images.
    """
    if config.data.source == "folder":
        from finetune.data.image_folder import list_folders, list_training_folders

        (list_training_folders if training else list_folders)(config.data.root)
    elif config.data.source == "manifest":
        from finetune.data.manifest import check_manifest

        assert config.data.path is not None, "the configuration was checked"
        check_manifest(config.data.path)
    weights = config.backbone.weights
    if _is_path(weights) and not Path(weights).expanduser().exists():
        raise UserError(f"backbone.weights={weights!r}: no such file or folder.")


def settings_of(source: str) -> Sequence[str]:
    """Return the settings that a source takes.

    Raises:
        UserError: There is no such source.
    """
    from finetune.data.registry import SOURCES

    if source not in SOURCES:
        raise UserError(
            f"data.source={source!r}: not known. Sources: {', '.join(SOURCES)}.{did_you_mean(source, SOURCES)}"
        )
    return SOURCES[source].settings


def decode_options(config: Config) -> "DecodeOptions":
    """Return how the image files of a configuration become pixels.

    Raises:
        UserError: ``data.high_depth`` names no rule.
    """
    from finetune.data.color import check_high_depth
    from finetune.data.decode import DecodeOptions

    channels = config.input.channels or NATIVE_CHANNELS.get(config.data.source, 3)
    options = DecodeOptions(channels=channels, high_depth=check_high_depth(config.data.high_depth))
    return options if config.data.max_pixels is None else replace(options, max_pixels=config.data.max_pixels)


def build_source(config: Config) -> "Source":
    """Build the source of the images.

    Raises:
        UserError: There is no such source, it does not take a setting that is set, or its data cannot be used.
    """
    from finetune.data.registry import SOURCES

    data = config.data
    takes = settings_of(data.source)
    for key in fields(DataConfig):
        value = getattr(data, key.name)
        if value not in (None, key.default) and key.name not in (*takes, *_OF_THE_LOADER):
            raise UserError(
                f"data.{key.name}={value!r}: not a setting of data={data.source}, which takes {', '.join(takes)}."
            )
    kind = SOURCES[data.source]
    own = {key: getattr(data, key) for key in kind.own if getattr(data, key) is not None}
    decode = decode_options(config)
    if kind.decodes and decode.channels not in (1, 3):
        raise UserError(
            f"input.channels={decode.channels}: data={data.source} reads image files as 1 or 3 channels. Use one of these; "
            "images with other channels come as arrays, under a Trainer of your own (finetune.FineTuner)."
        )
    pixels = {"decode": decode, "on_unreadable": data.on_unreadable} if kind.decodes else {"channels": decode.channels}
    return kind.build(**own, split=split_settings(config), **pixels)


def build_pretrained(config: Config, say: Say, *, trusted: bool = False) -> "Backbone":
    """Build the pretrained backbone and report the origin of its weights; its stem is not adapted yet.

    Args:
        config: Checked configuration.
        say: Function that shows a line to the user.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise a network of the user's is not built.

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
        backbone = own_backbone(config, input_spec=spec, trusted=trusted)
        start = "as its class makes them" if chosen.weights == "none" else f"from {chosen.weights}"
        say(f"weights: {name} {start} (seed {config.seed})")
    else:
        backbone = build_backbone(
            chosen.name, source=chosen.source, weights=chosen.weights, seed=config.seed, **chosen.kwargs
        )
        if chosen.weights == "none":
            say(f"weights: {name} starts from random weights (seed {config.seed}), not pretrained")
        else:
            say(f"weights: {name} from {chosen.weights}")
    backbone.input_spec = replace(backbone.input_spec, **given)
    return backbone


def build_model(config: Config, source: "Source", say: Say, *, trusted: bool = False) -> "Classifier":
    """Build the initial network and report the origin of its weights.

    Args:
        config: Checked configuration.
        source: Data set of the run.
        say: Function that shows a line to the user.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise a network or a head of the user's is
            not built.

    Raises:
        UserError: Weights or head do not fit.
    """
    from finetune.models.classifier import adaptation_cost, build_classifier
    from finetune.models.weights import load_head, state_hash

    backbone = build_pretrained(config, say, trusted=trusted)
    classes = source.index.classes
    size = image_size(config.input.size)
    settings = {"name": config.head.name, "drop_rate": config.head.drop_rate}
    if config.head.name == "mlp":
        settings["hidden"] = config.head.hidden
    if config.input.adapt == "sum" and source.decode.channels == 1:
        import torch

        from finetune.data.transforms import eval_view

        view = eval_view(replace(backbone.input_spec, channels=1, size=size or backbone.input_spec.size))
        rows = source.index.rows("train")[:32]
        images = torch.stack([view(source.read(int(row))) for row in rows])
        # a head of the user's is made for its own classes only; the stem is what is measured
        head = settings if config.head._target_ is None else "linear"
        cost = adaptation_cost(backbone=backbone, head=head, images_BCHW=images, adapt="sum", seed=config.seed)
        say(
            f"input.adapt=sum: the logits differ by {cost:.1%} from those of the exact adaptation "
            f"(relative, on {len(rows)} training images). input.adapt=fold is exact and as fast."
        )
    own: nn.Module | None = None
    node: Mapping[str, Any] | None = None
    if config.head._target_ is not None:
        own, node = own_head(config, num_features=backbone.num_features, num_classes=len(classes), trusted=trusted)
    classifier = build_classifier(
        backbone,
        head=settings if own is None else own,
        classes=classes,
        channels=source.decode.channels,
        size=size,
        adapt=config.input.adapt,
        seed=config.seed,
        multi_label=source.index.multi_label,
        head_target=node,
    )
    if config.head.weights:
        classifier.head = load_head(
            Path(config.head.weights).expanduser(),
            backbone_hash=state_hash(classifier.backbone),
            classes=classes,
            multi_label=classifier.multi_label,
            own=own,
        )
        say(f"head: from {config.head.weights}")
    return classifier


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


def build_data(
    config: Config,
    source: "Source",
    classifier: "Classifier",
    worker_init: Callable[[int], None] | None = None,
    *,
    trusted: bool = False,
) -> "ImageDataModule":
    """Build the data module of a run.

    Args:
        config: Checked configuration.
        source: Source of the images.
        classifier: Model that defines the input of the network.
        worker_init: Function called in each loader process with its number; None for none.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise a transform of the user's is not built.

    Raises:
        UserError: The transform cannot be built.
    """
    from finetune.data.class_weights import balanced_sample_weights
    from finetune.data.datamodule import ImageDataModule

    return ImageDataModule(
        source=source,
        spec=classifier.input_spec,
        seed=config.seed,
        batch_size=config.data.batch_size,
        eval_batch_size=config.data.eval_batch_size,
        num_workers=config.data.num_workers,
        augment=config.data.augment,
        transform=own_transform(config, spec=classifier.input_spec, trusted=trusted),
        sample_weights=balanced_sample_weights(source.index) if config.data.balanced else None,
        worker_init=worker_init,
    )


def optimizer_factory(phase: "Phase", *, trusted: bool) -> "OptimizerFactory":
    """Return a function that builds the optimizer of a phase from its parameter groups.

    Args:
        phase: Phase whose configuration names the optimizer.
        trusted: Whether the user typed that name; if not, it must be an optimizer of torch or timm.

    Raises:
        UserError: The node's target is not an optimizer, or refuses its arguments.
    """
    node = dict(phase.optimizer)
    target = str(node.pop("_target_", DEFAULT_OPTIMIZER))
    make = optimizer_class(target, trusted=trusted)

    def build(groups: "ParamGroups") -> Any:
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in node.items()}
        try:
            if _can_be_fused(make, arguments, phase):
                # RuntimeError: this device or dtype has no fused kernel
                with suppress(RuntimeError):
                    return make(groups, **arguments, fused=True)
            return make(groups, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer._target_={target}: refuses its arguments {arguments}. {error}") from error

    return build


def _can_be_fused(make: Callable[..., Any], arguments: Mapping[str, Any], phase: "Phase") -> bool:
    """Whether to request an optimizer's fused one-pass kernel from torch.

    AdamW on the 11 million weights of ResNet-18 takes 5 ms with it instead of 32 ms on two cores. In mixed precision, Lightning
    does not clip gradients for a fused optimizer.
    """
    try:
        takes = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False
    chosen = {"fused", "foreach", "differentiable"} & set(arguments)
    return "fused" in takes and not chosen and phase.gradient_clip is None


def imbalance(config: Config) -> Imbalance:
    """Return how a run handles classes of different size, for its plan and its results."""
    gamma = f", gamma {config.loss.focal_gamma:g}" if config.loss.name == "focal" else ""
    return Imbalance(
        loss=config.loss._target_ or f"{config.loss.name}{gamma}",
        class_weights=config.loss.class_weights,
        sampling="balanced" if config.data.balanced else "each image once",
    )


def loss_of(config: Config, source: "Source", *, trusted: bool = False) -> "Callable[[Phase], nn.Module]":
    """Return a function that builds the training loss of a phase, single-label or multi-label.

    Args:
        config: Checked configuration.
        source: Data set that gives the classes.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise a loss of the user's is not built.

    Raises:
        UserError: A loss of the user's cannot be built, or does not take the targets.
    """
    import torch

    from finetune.data.class_weights import class_weights, positive_weights
    from finetune.training.losses import MultiLabelLoss, TrainingLoss

    index = source.index
    loss = MultiLabelLoss if index.multi_label else TrainingLoss
    if config.loss._target_ is not None:
        make = partial(own_loss, config, num_classes=len(index.classes), multi_label=index.multi_label, trusted=trusted)
        make()
        return lambda phase: make()
    weights = None
    if config.loss.class_weights == "balanced":
        counts = index.counts()["train"]
        balanced = positive_weights(counts, len(index.rows("train"))) if index.multi_label else class_weights(counts)
        weights = torch.tensor(balanced, dtype=torch.float32)

    def build(phase: "Phase") -> "nn.Module":
        return loss(
            name=config.loss.name,
            label_smoothing=phase.label_smoothing,
            class_weights=weights,
            focal_gamma=config.loss.focal_gamma,
        )

    return build


def trainer_factory(config: Config, run_dir: Path, *, precision: "Json", trusted: bool) -> Callable[..., Any]:
    """Return a function that builds a Lightning Trainer from the configuration's node and the arguments that a run decides.

    Args:
        config: Checked configuration.
        run_dir: Run folder.
        precision: Precision that replaces ``auto``.
        trusted: Whether the user typed the node; if not, it may name only listed classes.

    Raises:
        UserError: The node sets an argument that the run decides.
    """
    if not isinstance(precision, str):  # from run.json, which may have another origin
        raise UserError(f"precision={str(precision)[:80]!r}: must be a word such as 32-true.")

    def build(**decided: Any) -> Any:
        if taken := sorted(set(config.trainer) & set(decided)):
            raise UserError(
                f"trainer.{taken[0]}={config.trainer[taken[0]]!r}: the run sets {shortened(taken)} itself, phase by phase. "
                "See schedule.*, checkpoint.*, logger.* and callbacks.*."
            )
        return instantiate(
            {"_target_": TRAINER, **config.trainer, "precision": precision},
            trusted=trusted,
            run_dir=run_dir,
            **decided,
        )

    return build


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """Everything that a run, a plan or a learning-rate search starts from."""

    source: "Source"
    classifier: "Classifier"
    data: "ImageDataModule"
    phases: "list[Phase]"


def _say_what_the_data_holds(source: "Source", say: Say) -> None:
    """Print the audit in a few lines, and the decisions about the data."""
    from finetune.data.audit import audit
    from finetune.data.audit_text import short

    lines = short(audit(source, look_alikes=False)) if source.facts is not None else []
    for line in (*lines, *source.index.notes):
        say(line)


def assemble(
    config: Config,
    say: Say = lambda line: None,
    description: Mapping[str, Any] | None = None,
    worker_init: Callable[[int], None] | None = None,
    *,
    trusted: bool = False,
) -> RunParts:
    """Build source, network, data module and schedule of a configuration.

    Args:
        config: Checked configuration.
        say: Function that shows a line to the user.
        description: Description of the network, if its weights will be loaded from a run, so that nothing is downloaded;
            None builds the network from the configuration.
        worker_init: Function called in each loader process with its number; None for none.
        trusted: Whether the user typed the configuration, or trusts its run; otherwise no class of the user's is built.

    Raises:
        UserError: Parts of the configuration do not fit together.
    """
    check_paths(config)
    source = build_source(config)
    if description is None:
        _say_what_the_data_holds(source, say)
        classifier = build_model(config, source, say, trusted=trusted)
    else:
        from finetune.bundle import description_problems
        from finetune.models.classifier import classifier_from_description

        if problems := description_problems(description):
            raise UserError(f"run.json: its model is damaged. {shortened(problems)}.")
        modules = own_modules(config, description, trusted=trusted)
        classifier = classifier_from_description(description, modules=modules)
    phases = build_phases(config, stages=classifier.stages, network=network_name(config))
    return RunParts(
        source=source,
        classifier=classifier,
        data=build_data(config, source, classifier, worker_init, trusted=trusted),
        phases=phases,
    )
