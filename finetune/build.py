"""From a configuration to the objects of a run. The only place that turns keys into arguments."""

import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.atomic_files import make_folder, sync_folder
from finetune.build_schedule import build_phases as build_phases
from finetune.config.schema import Config, DataConfig
from finetune.config.trust import DEFAULT_OPTIMIZER, TRAINER, instantiate, optimizer_class
from finetune.distributed import RUN_DIR_OF_RUN, is_rank_zero, started_together
from finetune.errors import UserError, did_you_mean, shortened
from finetune.file_errors import in_words
from finetune.file_lock import LOCK, FolderLock

if TYPE_CHECKING:  # imported where they are used: a wrong path must be answered before torch is loaded
    from torch import nn

    from finetune.data.datamodule import ImageDataModule
    from finetune.data.registry import Source
    from finetune.models.backbone import Backbone
    from finetune.models.classifier import Classifier
    from finetune.training.param_groups import OptimizerFactory
    from finetune.training.phases import Phase

Say = Callable[[str], None]
NATIVE_CHANNELS = {"digits": 1}
# keys of `data` that say how images are handed over, not where they come from
_OF_THE_LOADER = ("source", "balanced", "batch_size", "eval_batch_size", "num_workers", "augment")


def choose_run_dir(config: Config) -> Path:
    """The folder that a new run will make, as far as it can be told before; :func:`make_run_dir` makes it.

    A process that DDP started takes the folder of the process that started it.

    Raises:
        UserError: The folder given holds something already, or none is given and the processes, started by others than
            this program, could not agree on one.
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
    name = config.name or f"{config.data.source}-{config.backbone.name}-{config.schedule.name}"
    return Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name.replace('/', '_')}"


@contextmanager
def make_run_dir(config: Config, folder: Path) -> Iterator[Path]:
    """Make the folder of a new run, for this process alone while the block runs.

    Of several processes that want the same folder one gets it. The processes that DDP started have it made by the first.

    Args:
        config: Of the run.
        folder: From :func:`choose_run_dir`.

    Yields:
        The folder, with a number at its end where none was given and another process was faster.

    Raises:
        UserError: The folder that was given is another process's, or has something in it by now.
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
    """A path, then the same with 2, 3, ... at its end."""
    yield base
    yield from (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))


def _must_be_empty(folder: Path, config: Config) -> None:
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise UserError(
            f"run_dir='{config.run_dir}': must be new or empty. There is something in it already. "
            f"Choose another, or go on with that run: finetune resume {config.run_dir}"
        )


def check_typed_places(config: Config) -> None:
    """Refuse data or weights that are not there in the words that were typed, before their places are made absolute.

    Raises:
        UserError: A place does not exist.
    """
    data, weights = config.data, config.backbone.weights
    typed = {"folder": data.root, "manifest": data.path}.get(data.source)
    places = [*(typed if isinstance(typed, list) else [typed]), weights if _is_path(weights) else None]
    if any(place and not Path(str(place)).expanduser().exists() for place in places):
        check_paths(config)


def with_absolute_paths(config: Config) -> Config:
    """The same configuration with the places of data and weights independent of the working directory.

    A run is resumed, tested and reported from any directory, also after its folder has been moved.

    Raises:
        UserError: A place has a name that is no text in UTF-8, which the files of a run could not hold.
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
    """Hold that the data of a run is where it was when the run began.

    Args:
        config: Of the run.
        command: Takes ``data.root=`` or ``data.path=``, for the message.

    Raises:
        UserError: It is gone.
    """
    if config.data.source not in ("folder", "manifest", "huggingface"):
        return
    key = "root" if config.data.source == "folder" else "path"
    value = getattr(config.data, key)
    for place in value if isinstance(value, list) else [value]:
        if place and not Path(place).expanduser().exists():
            raise UserError(
                f"data.{key}={str(place)!r}: not there any more. The run was made with the data at that place. If it has been "
                f"moved, say where it is: {command} data.{key}={'DIR' if key == 'root' else 'PATH'}"
            )


def _must_be_utf8(key: str, path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{key}={path.encode('utf-8', 'backslashreplace').decode('utf-8')!r}: must be a name in UTF-8. It holds bytes that "
            "are no such text. Rename the folder, or give a link to it with another name."
        ) from None


def _is_path(weights: str) -> bool:
    looks_like_path = "/" in weights or weights.endswith((".safetensors", ".pth", ".pt", ".ckpt"))
    return looks_like_path and not weights.startswith("hub:")


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def check_paths(config: Config, *, training: bool = True) -> None:
    """What can be said of the data's place before torch is imported, which takes seconds.

    Args:
        config: Checked.
        training: Whether every class needs a training image.

    Raises:
        UserError: The folder is missing or holds no images.
    """
    if config.data.source == "folder":
        from finetune.data.image_folder import list_folders, scan_folders

        (scan_folders if training else list_folders)(config.data.root)
    elif config.data.source == "manifest":
        from finetune.data.manifest import check_manifest

        assert config.data.path is not None, "the configuration was checked"
        check_manifest(config.data.path)
    weights = config.backbone.weights
    if _is_path(weights) and not Path(weights).expanduser().exists():
        raise UserError(f"backbone.weights={weights!r}: no such file or folder.")


def settings_of(source: str) -> Sequence[str]:
    """The settings that a source takes.

    Raises:
        UserError: There is no such source.
    """
    from finetune.data.registry import SOURCES

    if source not in SOURCES:
        raise UserError(
            f"data.source={source!r}: not known. Sources: {', '.join(SOURCES)}.{did_you_mean(source, SOURCES)}"
        )
    return list(inspect.signature(SOURCES[source]).parameters)


def build_source(config: Config) -> "Source":
    """Where the images come from."""
    from finetune.data.registry import SOURCES

    data = config.data
    takes = settings_of(data.source)
    arguments: dict[str, Any] = {
        "channels": config.input.channels or NATIVE_CHANNELS.get(data.source, 3),
        "seed": config.seed,
    }
    for key in fields(DataConfig):
        value = getattr(data, key.name)
        if key.name in _OF_THE_LOADER or value is None:
            continue
        if key.name in takes:
            arguments[key.name] = value
        elif value != key.default:
            own = ", ".join(name for name in takes if name not in ("channels", "seed"))
            raise UserError(f"data.{key.name}={value!r}: not a setting of data={data.source}, which takes {own}.")
    return SOURCES[data.source](**arguments)


def build_pretrained(config: Config, say: Say) -> "Backbone":
    """The pretrained network, said where its weights come from; its stem is not adapted yet.

    Raises:
        UserError: The weights cannot be had, or do not fit.
    """
    from finetune.models.backbone import build_backbone

    chosen = config.backbone
    backbone = build_backbone(
        source=chosen.source, name=chosen.name, weights=chosen.weights, seed=config.seed, **chosen.kwargs
    )
    if chosen.weights == "none":
        say(f"weights: {chosen.name} starts from random weights (seed {config.seed}), not pretrained")
    else:
        say(f"weights: {chosen.name} from {chosen.weights}")
    given = {key: getattr(config.input, key) for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if value is not None
    }
    backbone.input_spec = replace(backbone.input_spec, **given)
    return backbone


def build_model(config: Config, source: "Source", say: Say) -> "Classifier":
    """The network at its start, said where its weights come from.

    Raises:
        UserError: Weights or head do not fit.
    """
    from finetune.models.classifier import adaptation_cost, build_classifier
    from finetune.models.weights import load_head, state_hash

    backbone = build_pretrained(config, say)
    head = {"name": config.head.name, "drop_rate": config.head.drop_rate}
    if config.head.name == "mlp":
        head["hidden"] = config.head.hidden
    classes = source.index.classes
    size = image_size(config.input.size)
    if config.input.adapt == "sum" and source.channels == 1:
        import torch

        from finetune.data.transforms import eval_view

        view = eval_view(replace(backbone.input_spec, channels=1, size=size or backbone.input_spec.size))
        rows = source.index.rows("train")[:32]
        images = torch.stack([view(source.read(int(row))) for row in rows])
        cost = adaptation_cost(backbone=backbone, head=head, images_BCHW=images, adapt="sum", seed=config.seed)
        say(
            f"input.adapt=sum: the logits differ by {cost:.1%} from those of the exact adaptation "
            f"(relative, on {len(rows)} training images). input.adapt=fold is exact and as fast."
        )
    classifier = build_classifier(
        backbone=backbone,
        head=head,
        classes=classes,
        channels=source.channels,
        size=size,
        adapt=config.input.adapt,
        seed=config.seed,
        multi_label=source.index.multi_label,
    )
    if config.head.weights:
        classifier.head = load_head(
            Path(config.head.weights).expanduser(),
            backbone_hash=state_hash(classifier.backbone),
            classes=classes,
            multi_label=classifier.multi_label,
        )
        say(f"head: from {config.head.weights}")
    return classifier


def image_size(value: Any) -> tuple[int, int] | None:
    """``input.size`` as height and width.

    Raises:
        UserError: It is neither a whole number nor two of them.

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
    config: Config, source: "Source", classifier: "Classifier", worker_init: Callable[[int], None] | None = None
) -> "ImageDataModule":
    """The data module of a run.

    Args:
        config: Checked.
        source: Where images come from.
        classifier: Says what an image must look like.
        worker_init: Called in each loader process with its number.
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
        sample_weights=balanced_sample_weights(source.index) if config.data.balanced else None,
        worker_init=worker_init,
    )


def optimizer_factory(phase: "Phase", *, trusted: bool) -> "OptimizerFactory":
    """The optimizer of a phase as a function of its groups.

    Args:
        phase: Names it.
        trusted: Whether the user typed that name; else it must be an optimizer of torch or timm.

    Raises:
        UserError: The node's target is no optimizer, or refuses its arguments.
    """
    node = dict(phase.optimizer)
    target = str(node.pop("_target_", DEFAULT_OPTIMIZER))
    make = optimizer_class(target, trusted=trusted)

    def build(groups: list[dict[str, Any]]) -> Any:
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in node.items()}
        try:
            if _can_be_fused(make, arguments, phase):
                # RuntimeError: this device or type has no such kernel
                with suppress(RuntimeError):
                    return make(groups, **arguments, fused=True)
            return make(groups, **arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer._target_={target}: refuses its arguments {arguments}. {error}") from error

    return build


def _can_be_fused(make: Callable[..., Any], arguments: dict[str, Any], phase: "Phase") -> bool:
    """Whether torch's one-pass kernel of an optimizer may be asked for.

    AdamW on the 11 million weights of ResNet-18 takes 5 ms by it in place of 32 ms on two cores. Lightning clips no gradients
    in mixed precision for an optimizer that is fused.
    """
    try:
        takes = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False
    chosen = {"fused", "foreach", "differentiable"} & set(arguments)
    return "fused" in takes and not chosen and phase.gradient_clip is None


def imbalance(config: Config) -> dict[str, str]:
    """What a run does about classes of different size, as its plan and its results say it."""
    gamma = f", gamma {config.loss.focal_gamma:g}" if config.loss.name == "focal" else ""
    return {
        "loss": f"{config.loss.name}{gamma}",
        "class_weights": config.loss.class_weights,
        "sampling": "balanced" if config.data.balanced else "each image once",
    }


def loss_of(config: Config, source: "Source") -> "Callable[[Phase], nn.Module]":
    """The training loss of a phase, for one label an image or for several."""
    import torch

    from finetune.data.class_weights import class_weights, positive_weights
    from finetune.training.losses import MultiLabelLoss, TrainingLoss

    index = source.index
    loss = MultiLabelLoss if index.multi_label else TrainingLoss
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


def trainer_factory(config: Config, run_dir: Path, *, precision: str, trusted: bool) -> Callable[..., Any]:
    """Makes a Lightning Trainer from the configuration's node and the arguments that a run decides.

    Args:
        config: Checked.
        run_dir: Of the run.
        precision: In place of ``auto``.
        trusted: Whether the user typed the node; else it may name listed classes alone.

    Raises:
        UserError: The node sets what the run decides.
    """
    if not isinstance(precision, str):  # of run.json, which somebody else may have written
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
    """The audit in a few lines, and what was decided about the data."""
    from finetune.data.audit import audit
    from finetune.data.audit_text import short

    lines = short(audit(source, look_alikes=False)) if source.facts is not None else []
    for line in (*lines, *source.index.notes):
        say(line)


def assemble(
    config: Config,
    say: Say = lambda line: None,
    description: dict[str, Any] | None = None,
    worker_init: Callable[[int], None] | None = None,
) -> RunParts:
    """Source, network, batches and schedule of a configuration.

    Args:
        config: Checked.
        say: Takes what the user should hear.
        description: Of the network, where its weights will be loaded from a run: nothing is fetched then.
        worker_init: Called in each loader process with its number.

    Raises:
        UserError: Something does not fit.
    """
    check_paths(config)
    source = build_source(config)
    if description is None:
        _say_what_the_data_holds(source, say)
        classifier = build_model(config, source, say)
    else:
        from finetune.bundle import description_problems
        from finetune.models.classifier import classifier_from_description

        if problems := description_problems(description):
            raise UserError(f"run.json: its model is damaged. {shortened(problems)}.")
        classifier = classifier_from_description(description)
    phases = build_phases(config, stages=classifier.stages, network=config.backbone.name)
    return RunParts(
        source=source, classifier=classifier, data=build_data(config, source, classifier, worker_init), phases=phases
    )
