"""Prediction sets: as many classes for an image as it takes for the true one to be among them as often as is wanted.

Split conformal prediction: a threshold is chosen so that the probability of the true class falls below it in no larger a share
of the validation images than may be wrong; a set holds every class at or above it (Sadinle, Lei and Wasserman 2019, the
smallest sets on average; Angelopoulos and Bates 2021, arXiv 2107.07511, for the count). Other images of the same kind find
their class in the set at least as often, on average over draws of the validation images.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.confidence.selective import MOST_POINTS
from finetune.errors import UserError
from finetune.plain import Json

# N = images, K = classes

# growth of the ranks that are kept; the lower of two neighbours makes sets a little larger than they need be
_GROWTH = 1.02


class RankPoint(NamedTuple):
    """The probability of the true class that is the ``rank``-th smallest of the validation images, rounded down."""

    rank: int
    probability: float


@dataclass(frozen=True, kw_only=True)
class ConformalCurve:
    """How probable the true classes of the validation images are.

    Args:
        images: Number of validation images.
        points: Some of the ranks, in order, from the first.
    """

    images: int
    points: tuple[RankPoint, ...]

    def threshold(self, coverage: float) -> float | None:
        """Return the least probability of a class in a set; None if the coverage cannot be promised.

        Args:
            coverage: Share of the images whose true class must be in their set, above 0 and below 1.
        """
        # rounded, because 20 * (1 - 0.95) is a little above 1, and a little below in others
        rank = math.floor(round((self.images + 1) * (1 - coverage), 9))
        return max((point.probability for point in self.points if point.rank <= rank), default=None)

    def best(self) -> float:
        """Return the highest coverage in whole per mille that can be promised; 0 if there is none."""
        return math.floor(1000 * (1 - 1 / (self.images + 1))) / 1000 if self.points else 0.0

    def to_plain(self) -> dict[str, Json]:
        """Return plain JSON values."""
        return {"images": self.images, "points": [list(point) for point in self.points]}


def conformal_curve(probabilities_NK: npt.NDArray[np.floating], targets_N: npt.NDArray[np.integer]) -> ConformalCurve:
    """Return the curve of validation images.

    Args:
        probabilities_NK: Probabilities of the classes.
        targets_N: True classes.
    """
    images = len(targets_N)
    true_N = np.sort(probabilities_NK[np.arange(images), targets_N].astype(np.float64))
    ranks, at = [], 1.0
    while at <= images:
        ranks.append(math.floor(at))
        at = max(at * _GROWTH, at + 1)
    return ConformalCurve(
        images=images, points=tuple(RankPoint(rank, _rounded_down(float(true_N[rank - 1]))) for rank in ranks)
    )


def _rounded_down(probability: float) -> float:
    """Round down to three digits, so that the last digits of another runtime do not decide.

    >>> _rounded_down(0.98765), _rounded_down(0.0012349), _rounded_down(0.0)
    (0.987, 0.00123, 0.0)
    """
    if probability <= 0:
        return 0.0
    digits = 2 - math.floor(math.log10(probability))
    return float(f"{math.floor(probability * 10**digits) / 10**digits:.3g}")


def conformal_problems(values: object) -> list[str]:
    """Return the problems with a curve in a file, which somebody else may have written."""
    try:
        read_conformal(values)  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError):
        return ["conformal: must be a curve of images, each point with a rank and a probability"]
    return []


def read_conformal(values: Mapping[str, Any]) -> ConformalCurve:
    """Return the curve that :meth:`ConformalCurve.to_plain` described.

    Raises:
        ValueError: A value is out of range.
        TypeError: A value has another type.
        KeyError: A value is missing.
    """
    points = tuple(RankPoint(*point) for point in values["points"])
    images = values["images"]
    if len(points) > MOST_POINTS or type(images) is not int:
        raise ValueError
    before = RankPoint(0, 0.0)
    for point in points:
        if type(point.rank) is not int or type(point.probability) is not float:
            raise ValueError
        if not before.rank < point.rank <= images or not before.probability <= point.probability <= 1:
            raise ValueError
        before = point
    return ConformalCurve(images=images, points=points)


@dataclass(frozen=True, kw_only=True)
class PredictionSets:
    """Which classes are in the set of an image.

    Args:
        least: Least probability of a class in it.
    """

    least: float

    def count(self, ranked_K: npt.NDArray[np.floating]) -> int:
        """Return how many of the most probable classes are in the set: at least one, which can only raise the coverage.

        Args:
            ranked_K: Probabilities, largest first.
        """
        # in double precision, in which the threshold is written
        return max(1, int((ranked_K.astype(np.float64) >= self.least).sum()))


def prediction_sets(*, coverage: float | None, curve: ConformalCurve | None, several: bool) -> PredictionSets | None:
    """Return which classes are in the set of an image; None if no sets are wanted.

    Args:
        coverage: Share of the images whose true class must be in their set.
        curve: Curve of the model; None if it has none.
        several: Whether the model gives several labels.

    Raises:
        UserError: The coverage is out of range, or cannot be promised.
    """
    if coverage is None:
        return None
    if several:
        raise UserError("--sets: needs a model of one label per image. This one gives several.")
    if not 0 < coverage < 1:
        raise UserError(
            f"--sets {coverage:g}: must be above 0 and below 1. It is the share of images whose true class must be in the set, "
            "for example 0.95."
        )
    if curve is None:
        raise UserError(
            f"--sets {coverage:g}: the model does not say how probable true classes are, as models of earlier versions and those "
            "not from a run. Leave it out; the probabilities are in the table."
        )
    least = curve.threshold(coverage)
    if least is None:
        best = curve.best()
        instead = f"The most that can be is --sets {best:g}." if best else "Nothing can be."
        raise UserError(
            f"--sets {coverage:g}: cannot be promised from the {curve.images:,} validation images of the run. {instead} More "
            "validation images allow more."
        )
    return PredictionSets(least=least)
