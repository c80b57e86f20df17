"""The other commands from Python: plan, audit, evaluate, export and the ladder, with typed results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.api.fit import fit
from finetune.api.model_argument import model_argument
from finetune.arguments import public
from finetune.errors import UserError, did_you_mean
from finetune.html import html_text
from finetune.ladder.networks import networks_chosen
from finetune.ladder.strategies import PROBE_ALONE, STRATEGIES, LadderOptions, refuse_own_settings

if TYPE_CHECKING:
    from torch import nn

    from finetune.api.model_argument import Run
    from finetune.data.audit import Audit
    from finetune.inference.evaluate import Evaluation
    from finetune.ladder_result import LadderResult
    from finetune.models.classifier import Classifier
    from finetune.training.plan import PlannedPhase

# splits that can be tested
EVALUATED = ("train", "val", "test", "all")


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """What a training would do.

    Args:
        phases: What each phase would do, with its stages, rates, steps and forecast time.
        precision: Precision of the computation, ``32-true`` for example.
        seconds: Forecast of all phases together, from an empty cache.
    """

    phases: "tuple[PlannedPhase, ...]"
    precision: str
    seconds: float

    def __str__(self) -> str:
        from finetune.training.plan import plan_table

        return plan_table(self.phases)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_text(str(self))


@dataclass(frozen=True, kw_only=True, repr=False)
class Export:
    """An export that agrees with the model that it was made from.

    Args:
        path: File or folder of the export.
        format: Its format.
        summary: Lines about how it was compared, with the figures.
    """

    path: Path
    format: str
    summary: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.format}: {self.path}", *self.summary])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_text(str(self))


@public(like=fit)
def plan(data: Any, **arguments: Any) -> Plan:
    """Return what :func:`finetune.fit` would do with the same arguments; nothing is trained and nothing is written.

    Args:
        data: Data set, as for :func:`finetune.fit`.
        **arguments: The other arguments of :func:`finetune.fit`.

    Raises:
        UserError: An argument, the data or the weights are wrong.
    """
    from finetune.api.settings import FitArguments
    from finetune.build import assemble
    from finetune.runners.plan import plan_run

    config, objects = FitArguments(data=data, **arguments).config_and_objects()
    parts = assemble(config, trusted=True, objects=objects)
    phases, precision = plan_run(config, parts)
    seconds = sum(phase.time.seconds for phase in phases if phase.time is not None)
    return Plan(phases=tuple(phases), precision=precision.name, seconds=seconds)


@public
def audit(data: Any, *, channels: int | None = None, overrides: Sequence[str] = ()) -> "Audit":
    """Check images before training: copies, leaks between splits, damaged files, imbalance; nothing is changed.

    Args:
        data: A folder, a table, a data frame, or ``"digits"``.
        channels: 1 to read images as grey, 3 as colour; None uses those of the data.
        overrides: Other overrides, as on the command line.

    Returns:
        The counts, the sizes and the findings; a notebook displays it as a table.

    Raises:
        UserError: There is no such data, or it has no files.
    """
    from finetune.api.settings import FitArguments
    from finetune.runners.audit import audit_source

    config, objects = FitArguments(data=data, channels=channels, overrides=overrides).config_and_objects()
    if objects.source is not None:
        raise UserError("data: an audit needs image files. Give a folder, a table, or a data frame with their paths.")
    return audit_source(config)[0]


@public
def evaluate(
    model: "Run | Classifier",
    data: Any = None,
    *,
    split: str = "test",
    modules: "Mapping[str, nn.Module] | None" = None,
    trust: bool = False,
    overrides: Sequence[str] = (),
) -> "Evaluation":
    """Test a model on its own test split, or on other data, whose classes are aligned by name.

    Args:
        model: A run or bundle folder, what :func:`finetune.fit` returned, or a model in memory.
        data: Other data, as for :func:`finetune.fit`; None uses that of the run.
        split: ``train``, ``val``, ``test`` or ``all``. Data without splits is all test data.
        modules: Modules of your own that the run needs, as for :func:`finetune.load`.
        trust: Build the classes of your own that the run names.
        overrides: Other overrides, as on the command line, ``["data.num_workers=4"]`` for example.

    Returns:
        The metrics, the number of images, and the classes without one.

    Raises:
        UserError: The data does not fit the model, or the split is empty.
    """
    from finetune.api.settings import FitArguments
    from finetune.config import check_overrides
    from finetune.data.python_datasets import class_names
    from finetune.inference.evaluate import evaluate_split
    from finetune.inference.trained_model import TrainedModel
    from finetune.models.modes import evaluating
    from finetune.runners.evaluate import evaluate_run

    if split not in EVALUATED:
        meant = next((name for name in EVALUATED if split[:2].lower() == name[:2]), None)
        hint = f" Did you mean {meant!r}?" if meant else ""
        raise UserError(f"split={split!r}: must be one of {', '.join(EVALUATED)}.{hint}")
    argument = model_argument(model, "model", modules=modules, trust=trust)
    if data is None and argument.given is not None and not argument.records_data:
        raise UserError(
            "data: must be given for a classifier, which does not know what it was trained on. Give the data, or a run."
        )
    words = [] if data is None else FitArguments(data=data, overrides=overrides).words_of_data()
    if words is not None and argument.folder is not None:
        accepted = check_overrides([*words, *overrides])
        return evaluate_run(argument.folder, accepted, split=split, trust=trust, load=argument.load)[0]
    loaded = argument.load()
    channels = loaded.input_spec.channels
    # numbers without names count as the model's classes; named classes are aligned by their names
    classes = None if words is not None or class_names(data) else loaded.classes
    arguments = FitArguments(data=data, channels=channels, classes=classes, overrides=overrides)
    source = arguments.evaluation_source(read_as=loaded.decode_options if isinstance(loaded, TrainedModel) else None)
    with evaluating(loaded):
        return evaluate_split(loaded, source, split)


@public
def export(
    run: "Run",
    format: str,  # as the command's option
    *,
    output: str | Path | None = None,
    images: Sequence[str | Path] | None = None,
    precision: str = "fp32",
    layout: str = "nhwc",
    check: int | None = None,
    modules: "Mapping[str, nn.Module] | None" = None,
    trust: bool = False,
) -> Export:
    """Write a trained model in a format that other programs open, after comparing the export with the model on real images.

    Args:
        run: Run or bundle folder, what :func:`finetune.fit` returned, or a model from :func:`finetune.load`.
        format: ``onnx``, ``torch_export``, ``timm``, ``torchvision``, ``transformers``, ``web``, ``head`` or ``backbone``.
        output: File or folder to write; None uses ``exports/`` in the run.
        images: Images to compare on; None uses the run's validation images.
        precision: ``fp32``, ``fp16`` or ``int8``, for onnx.
        layout: ``nhwc`` or ``nchw``: position of the channels, for onnx and torch_export.
        check: Number of images to compare on; None uses 64, or 256 for int8.
        modules: Modules of your own that the run needs, as for :func:`finetune.load`.
        trust: Build the classes of your own that the run names.

    Raises:
        UserError: The format is unknown, or the export cannot be made.
        RunError: The export does not agree with the model.
    """
    from finetune.export.formats import FORMATS
    from finetune.runners.export import export_run

    if format not in FORMATS:
        raise UserError(f"format={format!r}: must be one of {', '.join(FORMATS)}.{did_you_mean(format, FORMATS)}")
    for name, value, choices in (
        ("precision", precision, ("fp32", "fp16", "int8")),
        ("layout", layout, ("nhwc", "nchw")),
    ):
        if value not in choices:
            raise UserError(f"{name}={value!r}: must be one of {', '.join(choices)}.{did_you_mean(value, choices)}")
    argument = model_argument(run, modules=modules, trust=trust)
    path, lines = export_run(
        argument.require_folder("run"),
        format,
        output=None if output is None else Path(output).expanduser(),
        images=None if images is None else [str(image) for image in images],
        precision=precision,
        layout=layout,
        check=check,
        trust=trust,
        load=argument.load_saved,
    )
    return Export(path=path, format=format, summary=tuple(lines))


@public
def ladder(
    data: Any,
    *,
    backbone: str = "resnet18",
    weights: str | Path | None = None,
    size: int | None = None,
    channels: int | None = None,
    batch_size: int | None = None,
    augment: str | None = None,
    seeds: int = 3,
    epochs: int = 8,
    rungs: Sequence[str] | None = None,
    backbones: str | Sequence[str] | None = None,
    finalists: int = 2,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> "LadderResult":
    """Train the same network on the same data in several ways, over several seeds, and recommend one; or compare networks.

    Args:
        data: A folder, a table, a data frame, or ``"digits"``.
        backbone: The network.
        weights: Where its weights come from.
        size: Side of the network's input in pixels.
        channels: 1 for grey images, 3 for colour.
        batch_size: Images in one optimizer step.
        augment: The training views.
        seeds: Runs of each strategy; each seed gives its own split and initial weights.
        epochs: Passes over the training images, for every strategy that trains.
        rungs: Names of strategies; None uses all, and with ``backbones`` the solved head alone.
        backbones: Networks to compare, each by a head solved on its frozen features: names, or ``NAME=WEIGHTS``; ``"auto"``
            for those whose weights are on this machine. None compares strategies of one network.
        finalists: Number of these networks, the best on validation, that ``rungs`` train.
        output: A new folder, or that of an interrupted ladder, which is continued; None uses ``runs/ladder-DATA``.
        overrides: Other overrides, as on the command line.

    Raises:
        UserError: There is no such strategy, or an argument is wrong.
    """
    from finetune.api.settings import FitArguments
    from finetune.ladder.ladder import run_ladder

    refuse_own_settings(overrides)
    chosen = tuple(STRATEGIES) if rungs is None else tuple(rungs)
    if unknown := [name for name in chosen if name not in STRATEGIES]:
        raise UserError(
            f"rungs={unknown[0]!r}: no such strategy. Strategies: {', '.join(STRATEGIES)}."
            f"{did_you_mean(unknown[0], STRATEGIES)}"
        )
    for name, value in (("seeds", seeds), ("epochs", epochs), ("finalists", finalists)):
        if type(value) is not int or value < 1:
            raise UserError(f"{name}={value!r}: must be a whole number of at least 1.")
    arguments = FitArguments(
        data=data,
        backbone=backbone,
        weights=weights,
        size=size,
        channels=channels,
        batch_size=batch_size,
        augment=augment,
        overrides=overrides,
    )
    words = arguments.words_of_data()
    if words is None:
        raise UserError("data: a ladder needs data that its runs can name. Give a folder, a table or a data frame.")
    # a strategy sets its own schedule, and each run its own seed
    own = [word for word in arguments.words() if not word.startswith(("schedule=", "seed="))]
    options = LadderOptions(
        seeds=seeds,
        epochs=epochs,
        rungs=tuple(name for name in STRATEGIES if name in chosen),
        output=None if output is None else str(output),
        finalists=finalists,
    )
    if backbones is not None:
        if weights is not None or backbone != "resnet18":
            raise UserError("backbone, weights: backbones chooses the networks, as NAME=WEIGHTS. Leave them out.")
        own = [word for word in own if not word.startswith(("backbone=", "backbone."))]
        names = backbones.split(",") if isinstance(backbones, str) else backbones
        networks = networks_chosen(names, None if rungs is None else options.rungs, overrides)
        options = replace(options, networks=networks, rungs=PROBE_ALONE if rungs is None else options.rungs)
    return run_ladder([*words, *own, *overrides], options)
