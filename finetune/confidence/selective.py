"""Selective classification: how accurate confident answers are, and from which confidence on an accuracy can be promised."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from finetune.errors import UserError
from finetune.plain import Json

# a promise fails in at most one of twenty draws of the validation images
_FAILS = 0.05
# accepted images of the first point, and growth from point to point
_FIRST, _GROWTH = 10, 1.05
# above this, more points would not change a threshold by much, and a file with more was not written by us
MOST_POINTS = 1000


class CurvePoint(NamedTuple):
    """The validation images that are accepted from a confidence on."""

    confidence: float
    accepted: int
    wrong: int


@dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """The risk-coverage curve of a model on its validation images (El-Yaniv and Wiener 2010).

    Args:
        images: Number of validation images.
        points: Points of the curve, from the most confident images to all that can be accepted.
    """

    images: int
    points: tuple[CurvePoint, ...]

    def threshold(self, accuracy: float) -> CurvePoint | None:
        """Return the point at and above whose confidence the accuracy is promised; None if there is none.

        Other images are as accurate from that confidence on, in all but one of twenty draws of the validation images. The points
        are tested in order, by the lower end of the Clopper-Pearson interval (95 %, one-sided), beginning with the first that has
        images enough to pass without a mistake; the last before one fails is returned. As the order of tests is fixed before
        the answers are looked at, each may use the whole level (fixed-sequence testing; Angelopoulos et al. 2021, Learn then
        Test). The largest point that passes alone would break its promise more often, as the best of many is chosen.

        Args:
            accuracy: Accuracy wanted of the accepted answers, above 0 and below 1.
        """
        enough = math.log(_FAILS) / math.log(accuracy)
        found = None
        for point in self.points:
            if point.accepted < enough:
                continue
            if lowest_accuracy(point.accepted, point.wrong) < accuracy:
                break
            found = point
        return found

    def best(self) -> float:
        """Return the highest accuracy in whole per mille that can be promised; 0 if there is none."""
        return next((at / 1000 for at in range(999, 0, -1) if self.threshold(at / 1000) is not None), 0.0)

    def to_plain(self) -> dict[str, Json]:
        """Return plain JSON values."""
        return {"images": self.images, "points": [list(point) for point in self.points]}


def lowest_accuracy(accepted: int, wrong: int) -> float:
    """Return the lower end of the one-sided Clopper-Pearson interval (95 %) of an accuracy.

    >>> round(lowest_accuracy(299, 0), 3), lowest_accuracy(3, 3)
    (0.99, 0.0)
    """
    if wrong == accepted:
        return 0.0
    from scipy.special import betaincinv

    return float(betaincinv(accepted - wrong, wrong + 1, _FAILS))


def risk_coverage(confidence_N: npt.NDArray[np.floating], right_N: npt.NDArray[np.bool_]) -> RiskCoverage:
    """Return the curve of validation images.

    Args:
        confidence_N: Probability of the class that is answered; a negative value for an image that is accepted at no confidence.
        right_N: Whether the answer is right.
    """
    order = np.argsort(-confidence_N, kind="stable")
    confidence, wrong = confidence_N[order].astype(np.float64), np.cumsum(~right_N[order])
    most = int((confidence >= 0).sum())
    counts, at = [], float(_FIRST)
    while at < most:
        counts.append(round(at))
        at = max(at * _GROWTH, at + 1)
    points: list[CurvePoint] = []
    for count in [*counts, most] if most else []:
        here = confidence[count - 1]
        # images of the same confidence are accepted together
        count = int(np.searchsorted(-confidence, -here, side="right"))
        below = confidence[count] if count < most else 0.0
        # between two images, so that the last digits of another runtime accept the same
        point = CurvePoint(float((here + below) / 2), count, int(wrong[count - 1]))
        if not points or points[-1].accepted < count:
            points.append(point)
    return RiskCoverage(images=len(confidence), points=tuple(points))


def curve_problems(values: object) -> list[str]:
    """Return the problems with a curve in a file, which somebody else may have written."""
    try:
        read_curve(values)  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError):
        return ["selective: must be a curve of images, each point with a confidence, accepted and wrong images"]
    return []


def read_curve(values: Mapping[str, Any]) -> RiskCoverage:
    """Return the curve that :meth:`RiskCoverage.to_plain` described.

    Raises:
        ValueError: A value is out of range.
        TypeError: A value has another type.
        KeyError: A value is missing.
    """
    points = tuple(CurvePoint(*point) for point in values["points"])
    images = values["images"]
    numbers = [images, *(number for point in points for number in point[1:])]
    if len(points) > MOST_POINTS or any(type(number) is not int for number in numbers):
        raise ValueError
    before = CurvePoint(math.inf, 0, 0)
    for point in points:
        steps = point.accepted > before.accepted and 0 <= point.wrong - before.wrong <= point.accepted - before.accepted
        if type(point.confidence) is not float or not 0 <= point.confidence < before.confidence or not steps:
            raise ValueError
        before = point
    if before.accepted > images:
        raise ValueError
    return RiskCoverage(images=images, points=points)


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Which answers are accepted.

    Args:
        least: Least confidence.
    """

    least: float

    def accepts(self, confidence: float, *, known: bool | None) -> bool:
        """Tell whether an answer is accepted; an image that is unlike the training images never is."""
        return confidence >= self.least and known is not False


def acceptance(
    *, accept: float | None, least: float | None, curve: RiskCoverage | None, several: bool
) -> Acceptance | None:
    """Return which answers are accepted; None if all are.

    Args:
        accept: Accuracy wanted of the accepted answers.
        least: Least confidence of an accepted answer.
        curve: Risk-coverage curve of the model; None if it has none.
        several: Whether the model gives several labels.

    Raises:
        UserError: A number is out of range, both are given, or the accuracy cannot be promised.
    """
    if accept is None and least is None:
        return None
    if several:
        option = "--least" if accept is None else "--accept"
        raise UserError(f"{option}: needs a model of one label per image. This one gives several.")
    if accept is not None and least is not None:
        raise UserError(
            f"--accept {accept:g} --least {least:g}: both say which answers are accepted. Give one of them."
        )
    if least is not None:
        if not 0 <= least <= 1:
            raise UserError(f"--least {least:g}: must be from 0 to 1. It is a probability, for example 0.8.")
        return Acceptance(least=least)
    assert accept is not None
    if not 0 < accept < 1:
        raise UserError(f"--accept {accept:g}: must be above 0 and below 1. It is an accuracy, for example 0.99.")
    if curve is None:
        raise UserError(
            f"--accept {accept:g}: the model does not say how accurate its confident answers are, as models of "
            "earlier versions and those not from a run. Use --least 0.8, a confidence."
        )
    point = curve.threshold(accept)
    if point is None:
        best = curve.best()
        instead = f"The most that can be is --accept {best:g}." if best else "Nothing can be."
        raise UserError(
            f"--accept {accept:g}: cannot be promised from the {curve.images:,} validation images of the run. {instead} "
            "More validation images allow more; --least 0.8 accepts by confidence and promises nothing."
        )
    return Acceptance(least=point.confidence)
