"""Gallery of test images worth checking: confident mistakes and uncertain correct predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.confidence.thresholds import labels_shown
from finetune.data.image_source import Source
from finetune.file_schema import joined_labels
from finetune.report.thumbnails import source_thumbnail

MISTAKES, CORRECT = 24, 12


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The network's prediction for one test image.

    Args:
        place: Position in the evaluation.
        row: Row in the index.
        path: Path of the image file.
        true: True class, or all true classes for multi-label.
        found: Predicted class, or all predicted classes for multi-label.
        target: Index of the class with the highest probability.
        probability: Probability of that class.
    """

    place: int
    row: int
    path: str
    true: str
    found: str
    target: int
    probability: float


def correct_predictions(evaluation: dict[str, npt.NDArray[Any]], thresholds: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Return which images were classified correctly; for multi-label, in every label.

    Args:
        evaluation: Outputs of the network for a split.
        thresholds: For multi-label, the probability above which each class is predicted.
    """
    probabilities, targets = evaluation["probabilities"], evaluation["targets"]
    if targets.ndim == 2:
        return np.asarray(((probabilities > np.array(thresholds)) == (targets > 0)).all(axis=1))
    return np.asarray(probabilities.argmax(axis=1) == targets)


def choose(
    evaluation: dict[str, npt.NDArray[Any]], paths: Sequence[str], classes: Sequence[str], thresholds: Sequence[float]
) -> tuple[list[Answer], list[Answer]]:
    """Return the most confident mistakes, most confident first, and the least confident correct ones, least confident first.

    For multi-label, a mistake is as confident as its most confident wrong label, and a correct prediction as its least confident
    label.
    """
    probabilities, targets = evaluation["probabilities"], evaluation["targets"]
    is_correct = correct_predictions(evaluation, thresholds)
    if targets.ndim == 2:
        wrongness = np.abs(probabilities - targets).max(axis=1)
        sureness = np.abs(probabilities - np.array(thresholds)).min(axis=1)
    else:
        wrongness = sureness = probabilities.max(axis=1)
    mistakes = np.flatnonzero(~is_correct)
    correct = np.flatnonzero(is_correct)
    mistakes = mistakes[np.argsort(-wrongness[mistakes], kind="stable")][:MISTAKES]
    correct = correct[np.argsort(sureness[correct], kind="stable")][:CORRECT]
    chosen = [
        [answer_at(evaluation, int(place), paths, classes, thresholds) for place in places]
        for places in (mistakes, correct)
    ]
    return chosen[0], chosen[1]


def answer_at(
    evaluation: dict[str, npt.NDArray[Any]],
    place: int,
    paths: Sequence[str],
    classes: Sequence[str],
    thresholds: Sequence[float],
) -> Answer:
    """Return the prediction for the image at a position of the evaluation."""
    probabilities, target = evaluation["probabilities"][place], evaluation["targets"][place]
    best = int(probabilities.argmax())
    several = evaluation["targets"].ndim == 2
    return Answer(
        place=place,
        row=int(evaluation["rows"][place]),
        path=paths[place],
        true=joined_labels(classes, np.flatnonzero(target)) if several else classes[int(target)],
        found=joined_labels(classes, labels_shown(probabilities, thresholds)) if several else classes[best],
        target=best,
        probability=float(probabilities[best]),
    )


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """A prediction with its thumbnail.

    Args:
        answer: The prediction.
        image: Data URL of the thumbnail; None if the image is not available.
    """

    answer: Answer
    image: str | None


def shown(answers: Sequence[Answer], source: Source | None) -> list[ShownAnswer]:
    """Add thumbnails to the answers, where there are images."""
    return [
        ShownAnswer(answer=answer, image=source_thumbnail(source, answer.row) if source else None) for answer in answers
    ]
