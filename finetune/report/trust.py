"""Which answers can be trusted: accuracy by the share that is accepted, prediction sets, and images told as unknown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from markupsafe import Markup

from finetune.confidence.conformal import ConformalCurve, PredictionSets
from finetune.confidence.selective import RiskCoverage
from finetune.models.classifier import Classifier
from finetune.report.figures import MISS, MUTED, SERIES, drawing, inline_svg, new_figure

# N = images, K = classes

# accuracies and coverages that the page asks for
WANTED = (0.9, 0.95, 0.99)
# classes of the table, images of the gallery
MOST_CLASSES, MOST_SHOWN = 5, 12

Outputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What accepting answers for an accuracy comes to on the test images.

    Args:
        wanted: Accuracy wanted of the accepted answers.
        confidence: Least confidence of an accepted answer.
        share: Share of the test images whose answer is accepted.
        right: Share of the accepted answers that are right; None if none is accepted.
    """

    wanted: float
    confidence: float
    share: float
    right: float | None


@dataclass(frozen=True, kw_only=True)
class SetSize:
    """What prediction sets of a coverage come to on the test images.

    Args:
        wanted: Share of the images whose true class must be in their set.
        classes: Mean number of classes in a set.
        covered: Share of the test images whose true class is in it.
    """

    wanted: float
    classes: float
    covered: float


@dataclass(frozen=True, kw_only=True)
class UnknownClass:
    """How many test images of a class are told as unknown.

    Args:
        name: Name of the class.
        images: Test images of the class that were judged.
        unknown: Those told as unknown.
    """

    name: str
    images: int
    unknown: int


@dataclass(frozen=True, kw_only=True)
class TrustSection:
    """Which answers can be trusted.

    Args:
        chart: Accuracy of the accepted answers by their share, on the test images.
        promises: Accuracies that can be promised, up to the highest.
        best: Highest accuracy that can be promised; 0 for none.
        sets: Prediction sets that can be promised.
        val_images: Validation images that the promises rest on.
        images: Test images that were judged.
        unknown: Number of them told as unknown; None for a model that cannot tell.
        classes: Classes that are told as unknown most often.
        places: Positions of the most unlike images in the evaluation, the most unlike first.
    """

    chart: Markup
    promises: Sequence[Promise]
    best: float
    sets: Sequence[SetSize]
    val_images: int
    images: int
    unknown: int | None
    classes: Sequence[UnknownClass]
    places: Sequence[int]


def trust_section(classifier: Classifier, test: Outputs) -> TrustSection | None:
    """Judge the test images; None for a model without a risk-coverage curve.

    Args:
        classifier: The model.
        test: Its outputs for the test images.
    """
    curve = classifier.selective
    if curve is None or not len(test["rows"]):
        return None
    places_M, scores_M = np.arange(len(test["rows"])), None
    if classifier.unknown is not None and len(test["embedded_rows"]):
        places_M = np.searchsorted(test["rows"], test["embedded_rows"])
        scores_M = classifier.unknown(torch.from_numpy(test["embeddings"]).float()).numpy()
    probabilities_MK, targets_M = test["probabilities"][places_M], test["targets"][places_M]
    right_M = probabilities_MK.argmax(1) == targets_M
    known_M = np.ones(len(places_M), bool) if scores_M is None else scores_M <= 1
    # an unknown image is accepted at no confidence
    confidence_M = np.where(known_M, probabilities_MK.max(1), -1.0)
    promises = _promises(curve, confidence_M, right_M)
    unlike = [] if scores_M is None else [at for at in np.argsort(-scores_M, kind="stable") if not known_M[at]]
    return TrustSection(
        chart=_chart(confidence_M, right_M, promises),
        promises=promises,
        best=curve.best(),
        sets=_sets(classifier.conformal, probabilities_MK, targets_M),
        val_images=curve.images,
        images=len(places_M),
        unknown=None if scores_M is None else int((~known_M).sum()),
        classes=_unknown_classes(classifier.classes, targets_M, known_M),
        places=[int(places_M[at]) for at in unlike[:MOST_SHOWN]],
    )


def _promises(curve: RiskCoverage, confidence_M: npt.NDArray[Any], right_M: npt.NDArray[np.bool_]) -> list[Promise]:
    promises, best = [], curve.best()
    for wanted in (*(one for one in WANTED if one < best), *((best,) if best else ())):
        point = curve.threshold(wanted)
        if point is not None:
            accepted = confidence_M >= point.confidence
            right = float(right_M[accepted].mean()) if accepted.any() else None
            promises.append(
                Promise(wanted=wanted, confidence=point.confidence, share=float(accepted.mean()), right=right)
            )
    return promises


def _sets(
    curve: ConformalCurve | None, probabilities_MK: npt.NDArray[Any], targets_M: npt.NDArray[Any]
) -> list[SetSize]:
    sets: list[SetSize] = []
    if curve is None:
        return sets
    ranked_MK = -np.sort(-probabilities_MK, axis=1)
    true_M = probabilities_MK[np.arange(len(targets_M)), targets_M]
    for wanted in WANTED:
        least = curve.threshold(wanted)
        if least is not None:
            count_M = np.array([PredictionSets(least=least).count(row) for row in ranked_MK])
            # the most probable class is always in it
            covered = (true_M >= least) | (true_M == ranked_MK[:, 0])
            sets.append(SetSize(wanted=wanted, classes=float(count_M.mean()), covered=float(covered.mean())))
    return sets


def _unknown_classes(
    names: Sequence[str], targets_M: npt.NDArray[Any], known_M: npt.NDArray[np.bool_]
) -> list[UnknownClass]:
    images, unknown = (np.bincount(chosen, minlength=len(names)) for chosen in (targets_M, targets_M[~known_M]))
    rows = [
        UnknownClass(name=name, images=int(images[at]), unknown=int(unknown[at]))
        for at, name in enumerate(names)
        if unknown[at]
    ]
    return sorted(rows, key=lambda row: -row.unknown / row.images)[:MOST_CLASSES]


def _chart(confidence_M: npt.NDArray[Any], right_M: npt.NDArray[np.bool_], promises: Sequence[Promise]) -> Markup:
    """Plot the accuracy of the accepted answers against their share, from the surest to all that can be accepted."""
    order = np.argsort(-confidence_M, kind="stable")
    most = int((confidence_M >= 0).sum())
    counts = np.arange(1, most + 1)
    accuracy = right_M[order][:most].cumsum() / counts
    with drawing():
        figure = new_figure(4.1, 3.0)
        axis = figure.subplots()
        axis.plot(counts / len(order), accuracy, color=SERIES[0], label="on the test images")
        for promise in promises:
            axis.plot([0, promise.share], [promise.wanted] * 2, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            if promise.right is not None:
                axis.plot([promise.share], [promise.right], "o", color=MISS, markersize=5)
        if promises:
            axis.plot(
                [],
                [],
                "o--",
                color=MISS,
                markersize=5,
                label="--accept " + ", ".join(f"{p.wanted:g}" for p in promises),
            )
        axis.set_xlim(0, 1)
        axis.set_xlabel("share of the answers that are accepted")
        axis.set_ylabel("share of them that is right")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        axis.grid()
        return inline_svg(figure, name="trust", description="Accuracy of the accepted answers by their share")
