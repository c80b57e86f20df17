"""The images worth looking at: mistakes that the network was sure of, and hits that it was not sure of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.image_source import Source
from finetune.files import labels_above_half
from finetune.metrics import THRESHOLD
from finetune.report.thumbnails import source_thumbnail

MISTAKES, HITS = 24, 12


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the network said of one test image.

    Args:
        place: In the evaluation.
        row: Of the index.
        path: The file.
        true: True class, or all of them.
        found: Predicted class, or all of them.
        target: Number of the class that the network was surest of.
        probability: Of that class.
    """

    place: int
    row: int
    path: str
    true: str
    found: str
    target: int
    probability: float


def right_answers(evaluation: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Which images were classified right, in every label where there are several."""
    shares, targets = evaluation["probabilities"], evaluation["targets"]
    if targets.ndim == 2:
        return np.asarray(((shares > THRESHOLD) == (targets > 0)).all(axis=1))
    return np.asarray(shares.argmax(axis=1) == targets)


def choose(
    evaluation: dict[str, npt.NDArray[Any]], paths: Sequence[str], classes: Sequence[str]
) -> tuple[list[Answer], list[Answer]]:
    """The surest mistakes, surest first, and the least sure hits, least sure first.

    With several labels an image, a mistake is as sure as its surest wrong label, and a hit as its least sure label.
    """
    shares, targets = evaluation["probabilities"], evaluation["targets"]
    right = right_answers(evaluation)
    if targets.ndim == 2:
        wrongness = np.abs(shares - targets).max(axis=1)
        sureness = np.abs(shares - THRESHOLD).min(axis=1)
    else:
        wrongness = sureness = shares.max(axis=1)
    mistakes = np.flatnonzero(~right)
    hits = np.flatnonzero(right)
    mistakes = mistakes[np.argsort(-wrongness[mistakes], kind="stable")][:MISTAKES]
    hits = hits[np.argsort(sureness[hits], kind="stable")][:HITS]
    found = [[_answer(evaluation, int(place), paths, classes) for place in places] for places in (mistakes, hits)]
    return found[0], found[1]


def _answer(
    evaluation: dict[str, npt.NDArray[Any]], place: int, paths: Sequence[str], classes: Sequence[str]
) -> Answer:
    shares, target = evaluation["probabilities"][place], evaluation["targets"][place]
    best = int(shares.argmax())
    several = evaluation["targets"].ndim == 2
    return Answer(
        place=place,
        row=int(evaluation["rows"][place]),
        path=paths[place],
        true=labels_above_half(classes, target.tolist()) if several else classes[int(target)],
        found=labels_above_half(classes, shares.tolist()) if several else classes[best],
        target=best,
        probability=float(shares[best]),
    )


def shown(answers: Sequence[Answer], source: Source | None) -> list[dict[str, Any]]:
    """The answers with small pictures where there are images."""
    return [{"answer": answer, "image": source_thumbnail(source, answer.row) if source else None} for answer in answers]
