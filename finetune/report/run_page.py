"""``report.html``: one page with everything about a finished run, all images embedded."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from markupsafe import Markup
from torch import nn

from finetune.atomic_files import write_text
from finetune.bundle import load_bundle
from finetune.confidence import temperature as calibration
from finetune.data.audit import audit
from finetune.data.audit_text import short
from finetune.data.image_file import UnreadableImage
from finetune.data.image_source import Source
from finetune.data.transforms import View, eval_view
from finetune.file_schema import REPORT
from finetune.models.classifier import Classifier
from finetune.models.user_modules import modules_text, user_classes
from finetune.report import bootstrap, embedding_map, gallery, training_charts, usage
from finetune.report.audit_page import training_views
from finetune.report.better_phase import better_phase
from finetune.report.calibration_chart import calibration_chart
from finetune.report.confusion import (
    MOST_CLASSES,
    Mistakes,
    confused_pairs,
    confusion_chart,
    confusion_of,
    images_counted,
)
from finetune.report.grad_cam import Where, find_layer, heat_maps, overlay
from finetune.report.movement import kept_movements, movements
from finetune.report.pages import render_page
from finetune.report.run_files import RunFiles, read_run
from finetune.report.trust import TrustSection, trust_section
from finetune.results import Calibration
from finetune.run_folder import RunFolder
from finetune.wilson import wilson

# most images with a heat map, among the mistakes and among the correct predictions
_LOOKED_AT = 6
# training views are shown for this many classes, this many of each
_VIEWED_CLASSES = 4
_VIEWS = 4
_OTHER_DATA = (
    "The data has changed since the run (its fingerprint differs), so no images are shown beside the predictions."
)


def write_report(
    run_dir: str | Path,
    source: Source | None,
    *,
    why_no_images: str = "",
    modules: Mapping[str, nn.Module] | None = None,
    views: Mapping[str, View] | None = None,
) -> Path:
    """Write the page of a finished run.

    Args:
        run_dir: Run folder.
        source: Images of the run; None if they are not available.
        why_no_images: Text shown in place of the images if there are none.
        modules: User-supplied modules that the model needs; see :func:`finetune.bundle.load_bundle`.
        views: Lists of operations that made training views, to be shown in pictures; None for none.

    Returns:
        The file written.

    Raises:
        UserError: The folder is not a finished run, or one of its files is damaged.
    """
    run = read_run(run_dir)
    if source is not None and source.index.fingerprint() != run.results.data.fingerprint:
        source, why_no_images = None, _OTHER_DATA
    target = run.run_dir / REPORT
    write_text(target, run_page(run, source, why_no_images=why_no_images, modules=modules, views=views))
    return target


def run_page(
    run: RunFiles,
    source: Source | None,
    *,
    why_no_images: str = "",
    modules: Mapping[str, nn.Module] | None = None,
    views: Mapping[str, View] | None = None,
) -> str:
    """Render the page as HTML."""
    classifier = load_bundle(run.run_dir, modules=modules)
    moved = kept_movements(RunFolder(run.run_dir), run.stages, len(run.plan))
    weights = run.weights()
    own = bool(user_classes(classifier.describe()))
    given = modules_text(classifier.describe())
    trust = trust_section(classifier, run.evaluation["test"]) if "test" in run.evaluation else None
    return render_page(
        "run.html",
        run=run,
        results=run.results,
        name=run.run_dir.resolve().name,
        why_no_images=why_no_images,
        headline=_headline(run),
        plan_chart=training_charts.plan_chart(run),
        better=better_phase(
            run.results.phases,
            yaml.safe_load(run.config)["schedule"]["phases"],
            images=images_counted(run.results.val, len(run.classes)),
        ),
        curves=training_charts.curve_charts(run) if run.epochs else [],
        rate_chart=training_charts.rate_chart(run) if run.epochs else None,
        gradient_chart=training_charts.gradient_chart(run),
        movement=_movement(run, moved or movements(classifier, weights)) if moved or weights else None,
        classes=_classes(run),
        confusion=_confusion(run),
        views=_views(source, views),
        reliability=_reliability(run),
        trust=trust,
        unlike=_unlike(run, trust, source),
        maps=_maps(run),
        audit=short(audit(source, look_alikes=False)) if source is not None and source.facts is not None else [],
        snippet=usage.python_snippet(str(run.run_dir), trust=own, modules=given),
        commands=usage.commands(str(run.run_dir), trust=own, modules=given),
        configuration=settings_in_use(run.config),
        **vars(_images(run, classifier, source)),
    )


def settings_in_use(text: str) -> str:
    r"""Return the text of ``config.yaml`` without settings that are null or empty, and without sections of these alone.

    >>> text = "seed: 0\nname: null\ncache:\n  max: null\nfreeze: []\nphases:\n- lr: null\n  train:\n  - head"
    >>> print(settings_in_use(text))
    seed: 0
    phases:
    - train:
      - head
    """
    kept: list[str] = []
    for line in reversed(text.splitlines()):
        depth = len(line) - len(line.lstrip())
        below = kept[-1] if kept else ""
        deeper = len(below) - len(below.lstrip()) > depth
        unused = re.fullmatch(r"\s*(- )?[\w.]+: (null|\{\}|\[\]|'')", line)
        if unused and unused[1] and deeper:
            # the next setting begins the entry of the list
            kept[-1] = f"{line[:depth]}- {below.lstrip()}"
        elif line.endswith(":") and not line.lstrip().startswith("- "):
            if deeper or below.lstrip().startswith("- "):
                kept.append(line)
        elif not unused:
            kept.append(line)
    return "\n".join(reversed(kept))


def _views(source: Source | None, views: Mapping[str, View] | None) -> dict[str, list[str]]:
    """Return a few pictures of each list of operations, as data URLs."""
    shown: dict[str, list[str]] = {}
    if source is None or views is None:
        return shown
    for text, view in views.items():
        with suppress(UnreadableImage):  # missing or damaged since the run
            classes = training_views(source, view, most_classes=_VIEWED_CLASSES, views=_VIEWS)
            shown[text] = [image for one in classes for image in one.images]
    return shown


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The figures at the top of the page.

    Args:
        images: Number of test images.
        intervals: Bootstrap interval of each metric; empty without the outputs of each image.
        no_mistake: Whether every test image was correct; the page then shows another bound.
        time: Training time, in words.
        trainable: Trained parameters in the largest phase.
        total: Parameters of the network.
    """

    images: int
    intervals: Mapping[str, bootstrap.Interval]
    no_mistake: bool
    time: str
    trainable: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How far the weights moved.

    Args:
        chart: Stages by phases.
        farthest: Stage that moved farthest over the whole run.
        untouched: Stages that did not move at all.
    """

    chart: Markup
    farthest: str
    untouched: list[str]


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Counts and scores of a class; a score is None if it is not defined.

    Args:
        name: Name of the class.
        train: Training images.
        test: Test images.
        recall: Fraction of its images that were predicted as it.
        precision: Fraction of the images predicted as it that are of it.
        f1: F1 score.
        missed: Images of it that were predicted as others.
        false: Images of others that were predicted as it.
        threshold: With several labels, the probability above which it is predicted.
    """

    name: str
    train: int
    test: int
    recall: float | None
    precision: float | None
    f1: float | None
    missed: int
    false: int
    threshold: float


@dataclass(frozen=True, kw_only=True)
class ConfusionSection:
    """Which classes are confused.

    Args:
        chart: The confusion matrix.
        pairs: The most frequent mistakes.
        kinds: Number of all kinds of mistakes.
        left_out: Classes that the chart leaves out.
    """

    chart: Markup
    pairs: list[Mistakes]
    kinds: int
    left_out: int


@dataclass(frozen=True, kw_only=True)
class ReliabilitySection:
    """Reliability on the test images.

    Args:
        chart: Reliability diagram, as trained and as calibrated.
        fitted: The temperature; None if the run was not calibrated.
        ece: Expected calibration error of the model.
        loss: Test loss of the model.
    """

    chart: Markup
    fitted: Calibration | None
    ece: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """An image with a heat map of the places that support the predicted class.

    Args:
        answer: The prediction.
        images: Data URLs of the image and of its overlay.
        hit: Whether the prediction is correct.
    """

    answer: gallery.Answer
    images: Sequence[str]
    hit: bool


@dataclass(frozen=True, kw_only=True)
class ShownImages:
    """Test images on the page.

    Args:
        mistakes: The most confident mistakes.
        correct: The least confident correct predictions.
        wrong: Number of all mistakes.
        cams: Heat maps of a few of each.
        cam_stage: Where the heat maps were computed; None without them.
    """

    mistakes: Sequence[gallery.ShownAnswer] = ()
    correct: Sequence[gallery.ShownAnswer] = ()
    wrong: int = 0
    cams: Sequence[HeatMap] = ()
    cam_stage: Where | None = None


def _headline(run: RunFiles) -> Headline:
    """Return the main metrics with their intervals, the number of trained parameters, and the training time."""
    test, images = run.results.test, images_counted(run.results.test, len(run.classes))
    evaluation = run.evaluation.get("test")
    intervals: dict[str, bootstrap.Interval] = {}
    if not run.multi_label:
        intervals = bootstrap.intervals(confusion_of(test, len(run.classes)))
    elif evaluation:
        shown = evaluation["probabilities"] > np.array(run.thresholds)
        intervals = bootstrap.multi_label_intervals(evaluation["targets"] > 0, shown)
    # a share has an interval without resampling, the same as in finetune runs
    intervals = {**intervals, "acc": wilson(test.acc, images)} if intervals else intervals
    seconds = run.results.seconds.training
    return Headline(
        images=images,
        intervals=intervals,
        # resampling images that are all correct gives only correct ones, so the interval would be too narrow
        no_mistake=test.acc == 1.0 and images >= 3,
        time=f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min",
        trainable=max(phase.trainable for phase in run.plan),
        total=run.plan[0].total,
    )


def _movement(run: RunFiles, moved: Sequence[Mapping[str, float | None]]) -> Movement:
    whole = moved[-1]
    return Movement(
        chart=training_charts.movement_chart(run, moved),
        farthest=max(whole, key=lambda stage: whole[stage] or 0.0),
        untouched=[stage for stage, value in whole.items() if value == 0.0],
    )


def _classes(run: RunFiles) -> list[ClassScores]:
    """Return each class with its counts and scores, lowest F1 first; classes without a test image come last."""
    if run.multi_label:
        confusion = np.array(run.results.test.confusion, dtype=np.int64)
        correct, support, assigned = confusion[:, 1, 1], confusion[:, 1].sum(axis=1), confusion[:, :, 1].sum(axis=1)
    else:
        matrix = confusion_of(run.results.test, len(run.classes))
        correct, support, assigned = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    rows = [
        ClassScores(
            name=name,
            train=run.results.data.counts["train"][k],
            test=int(support[k]),
            recall=correct[k] / support[k] if support[k] else None,
            precision=correct[k] / assigned[k] if assigned[k] else None,
            f1=2 * correct[k] / (support[k] + assigned[k]) if support[k] + assigned[k] else None,
            missed=int(support[k] - correct[k]),
            false=int(assigned[k] - correct[k]),
            threshold=run.thresholds[k],
        )
        for k, name in enumerate(run.classes)
    ]
    return sorted(rows, key=lambda row: (not row.test, row.f1 or 0.0))


def _confusion(run: RunFiles) -> ConfusionSection | None:
    """Return the confusion chart and pairs; None for multi-label, where no class is mistaken for another."""
    if run.multi_label:
        return None
    matrix = confusion_of(run.results.test, len(run.classes))
    pairs, kinds = confused_pairs(matrix, run.classes)
    left_out = max(len(run.classes) - MOST_CLASSES, 0)
    return ConfusionSection(chart=confusion_chart(matrix, run.classes), pairs=pairs, kinds=kinds, left_out=left_out)


def _reliability(run: RunFiles) -> ReliabilitySection | None:
    """Return the reliability of the model on the test images, and what it would be without its temperature."""
    if "test" not in run.evaluation:
        return None
    test, fitted = run.evaluation["test"], run.results.calibration
    shown, loss = calibration.assess(test["probabilities"], test["targets"])
    curves = {"as trained": shown}
    if fitted is not None and fitted.temperature != 1:
        # the inverse of a temperature takes it back
        raw, _ = calibration.assess(test["probabilities"], test["targets"], 1 / fitted.temperature)
        curves = {"as trained": raw, "calibrated": shown}
    return ReliabilitySection(
        chart=calibration_chart(curves, multi_label=run.multi_label), fitted=fitted, ece=shown.ece, loss=loss
    )


def _unlike(run: RunFiles, trust: TrustSection | None, source: Source | None) -> list[gallery.ShownAnswer]:
    """Return the test images that are told as unknown, the most unlike first, with their thumbnails."""
    if trust is None:
        return []
    test = run.evaluation["test"]
    answers = [gallery.answer_at(test, place, run.paths, run.classes, run.thresholds) for place in trust.places]
    return gallery.shown(answers, source)


def _maps(run: RunFiles) -> list[Markup]:
    test = run.evaluation.get("test")
    if test is None or len(test["embedded_rows"]) < embedding_map.FEWEST:
        return []
    places = np.searchsorted(test["rows"], test["embedded_rows"])
    # an image with several labels takes the colour of the class with the highest probability
    groups = test["probabilities"][places].argmax(axis=1) if run.multi_label else test["targets"][places]
    wrong = ~gallery.correct_predictions(test, run.thresholds)[places]
    return [
        embedding_map.map_chart(points, method=method, groups=groups, names=run.classes, wrong=wrong)
        for method, points in embedding_map.projections(test["embeddings"]).items()
    ]


def _images(run: RunFiles, classifier: Classifier, source: Source | None) -> ShownImages:
    """Return mistakes and correct predictions with their thumbnails, and heat maps of a few of each."""
    test = run.evaluation.get("test")
    if test is None:
        return ShownImages()
    mistakes, correct = gallery.choose(test, run.paths, run.classes, run.thresholds)
    cams, cam_stage = [], None
    few = [*mistakes[:_LOOKED_AT], *correct[:_LOOKED_AT]]
    if source is not None and few:
        view = eval_view(classifier.input_spec)
        images: dict[gallery.Answer, torch.Tensor] = {}
        for answer in few:
            with suppress(UnreadableImage):  # missing or damaged since the run
                images[answer] = view(source.read(answer.row, min_side=view.min_side))
        cam_stage = find_layer(classifier, next(iter(images.values()))) if images else None
        if cam_stage is not None:
            stacked = torch.stack(list(images.values()))
            heat = heat_maps(classifier, cam_stage, stacked, [answer.target for answer in images])
            cams = [
                HeatMap(answer=answer, images=overlay(image, heat_HW), hit=answer not in mistakes)
                for (answer, image), heat_HW in zip(images.items(), heat, strict=True)
            ]
    return ShownImages(
        mistakes=gallery.shown(mistakes, source),
        correct=gallery.shown(correct, source),
        wrong=int((~gallery.correct_predictions(test, run.thresholds)).sum()),
        cams=cams,
        cam_stage=cam_stage,
    )
