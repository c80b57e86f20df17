"""The ladder's recommendation: choose a strategy by a stated rule, and estimate whether more data would help."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.ladder_result import LadderResult, Recommendation, RungResult
from finetune.wrapping import aligned

RULE = (
    "The cheapest trained strategy whose mean validation accuracy is within one standard error of the best one's (the "
    "one-standard-error rule of Breiman et al. 1984). Confidence: the share of 2,000 resamples of the seeds in which the rule "
    "chooses the same."
)
NETWORKS_RULE = (
    "The smallest network whose mean validation accuracy is within one standard error of the best one's (the one-standard-error "
    "rule of Breiman et al. 1984), and of its strategies within it the first listed. Confidence: the share of 2,000 resamples of "
    "the seeds in which the rule chooses the same."
)
BASELINES = ("majority", "knn")
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A strategy and its runs.

    Args:
        name: Name of the strategy.
        runs: For each seed ``val``, ``test`` (accuracies), ``seconds`` (of training) and ``trained`` (parameters).
        parameters: Number of parameters of the network; None if the rungs are strategies of one network.
        licence: Licence of its pretrained weights; None likewise, and for random weights.
    """

    name: str
    runs: Sequence[Mapping[str, float]]
    parameters: int | None = None
    licence: str | None = None

    def mean(self, key: str) -> float:
        """Return the mean over the seeds."""
        return float(np.mean([run[key] for run in self.runs]))

    def interval(self, key: str) -> float | None:
        """Return half the width of the 95 % interval of Student's t; None for one seed."""
        from scipy.stats import t as student

        values = [run[key] for run in self.runs]
        if len(values) < 2:
            return None
        return float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))

    def result(self) -> RungResult:
        """Return the strategy with its means."""
        return RungResult(
            name=self.name,
            runs=tuple(dict(run) for run in self.runs),
            val=self.mean("val"),
            test=self.mean("test"),
            test_interval=self.interval("test"),
            seconds=self.mean("seconds"),
            trained=self.mean("trained"),
            parameters=self.parameters,
            licence=self.licence,
        )


def recommend(rungs: Sequence[Rung]) -> Recommendation | None:
    """Apply :data:`RULE` to the strategies that train, or :data:`NETWORKS_RULE` to networks; return None if there is none.

    >>> steady = Rung(name="frozen", runs=[{"val": v, "test": v, "seconds": 1.0, "trained": 1} for v in (0.90, 0.91)])
    >>> costly = Rung(name="full", runs=[{"val": v, "test": v, "seconds": 9.0, "trained": 9} for v in (0.90, 0.92)])
    >>> recommend([steady, costly]).name
    'frozen'
    """
    # the baselines are for comparison only; they produce no model
    rungs = [rung for rung in rungs if rung.name not in BASELINES]
    if not rungs:
        return None
    values = np.array([[run["val"] for run in rung.runs] for rung in rungs])
    rule = RULE if rungs[0].parameters is None else NETWORKS_RULE
    costs = np.array([rung.mean("seconds") if rung.parameters is None else rung.parameters for rung in rungs])
    chosen, best = _by_rule(values, costs)
    random = np.random.Generator(np.random.Philox(0))
    seeds = values.shape[1]
    confidence = None
    if seeds > 1:
        again = (_by_rule(values[:, random.integers(0, seeds, seeds)], costs)[0] == chosen for _ in range(_RESAMPLES))
        confidence = float(np.mean(list(again)))
    return Recommendation(name=rungs[chosen].name, confidence=confidence, best=rungs[best].name, rule=rule, seeds=seeds)


def _by_rule(values: Any, costs: Any) -> tuple[int, int]:
    means = values.mean(1)
    best = int(means.argmax())
    error = values[best].std(ddof=1) / math.sqrt(values.shape[1]) if values.shape[1] > 1 else 0.0
    close = np.flatnonzero(means >= means[best] - error)
    return int(close[costs[close].argmin()]), best


def more_data(curves: Sequence[Sequence[Mapping[str, float]]]) -> str:
    """Return whether more labelled images would help, judged by the last two points of the mean learning curve."""
    if not curves or min(len(curve) for curve in curves) < 2:
        return "There are too few images for a learning curve."
    last, before = ([curve[at]["test"] for curve in curves] for at in (-1, -2))
    gain = float(np.mean(last) - np.mean(before))
    growth = curves[0][-1]["per_class"] / curves[0][-2]["per_class"]
    verdict = "more images would likely help" if gain > 0.005 else "more images of this kind would change little"
    return (
        f"From {curves[0][-2]['per_class']:.0f} to {curves[0][-1]['per_class']:.0f} images per class ({growth:.1f} times as "
        f"many) the frozen features {'gained' if gain >= 0 else 'lost'} {100 * abs(gain):.1f} points: {verdict}."
    )


def ladder_table(result: LadderResult) -> str:
    """Return the ladder as a text table."""
    several = any(rung.test_interval is not None for rung in result.rungs)
    titles = (result.title, "val", "test, 95 % interval" if several else "test", "seconds", *result.size_titles)
    rows = [
        (
            rung.name,
            f"{100 * rung.val:.2f}",
            rung.test_in_words(scale=100, digits=2),
            f"{rung.seconds:.1f}",
            *result.size_cells(rung),
        )
        for rung in result.rungs
    ]
    lines = aligned([titles, *rows], left=1)
    chosen = result.recommended
    if chosen is not None:
        split = "\n  " if chosen.confidence is None or result.compares_networks else " "
        lines += [
            "",
            f"recommended: {chosen.name} ({chosen.confidence_in_words()};{split}best on validation: {chosen.best})",
        ]
        if result.train_it:
            lines.append(f"  {result.train_it}")
    if result.learning_curve:
        lines += ["", more_data(result.learning_curve)]
    return "\n".join(lines)
