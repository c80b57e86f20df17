"""Floors of test metrics: what a model must reach at least, for a pipeline that ships it."""

import math
from collections.abc import Mapping, Sequence

from finetune.errors import UserError, did_you_mean

# metrics of which more is better; the last two belong to data with several labels per image
_METRICS = ("acc", "f1_macro", "f1_micro", "map")
_SHORT = {"f1": "f1_macro", "accuracy": "acc"}


def read_floors(words: Sequence[str]) -> dict[str, float]:
    """Read ``acc=0.95`` and its like.

    Raises:
        UserError: A metric is not known, less of it is better, or its floor is not a number from 0 to 1.

    >>> read_floors(["acc=0.95", "f1=0.9"])
    {'acc': 0.95, 'f1_macro': 0.9}
    """
    floors = {}
    for word in words:
        name, _, text = word.partition("=")
        metric = _SHORT.get(name, name)
        if metric not in _METRICS:
            raise UserError(
                f"--at-least {word}: not a metric of which more is better. Metrics: {', '.join(_METRICS)}; f1 is f1_macro."
                f"{did_you_mean(name, _METRICS)} Settings such as data.root=DIR stand before --at-least."
            )
        try:
            floor = float(text)
        except ValueError:
            floor = math.nan
        if not 0 <= floor <= 1:
            raise UserError(f"--at-least {word}: must be METRIC=NUMBER, a number from 0 to 1. Use {name}=0.95.")
        floors[metric] = floor
    return floors


def shortfalls(floors: Mapping[str, float], scalars: Mapping[str, float]) -> list[str]:
    """Return the metrics that are below their floors; one that is not a number is below every floor.

    Raises:
        UserError: The data has no such metric.

    >>> shortfalls({"acc": 0.95, "f1_macro": 0.8}, {"acc": 0.94996, "f1_macro": 0.8})
    ['acc 0.94996 is below 0.95']
    """
    for metric in floors:
        if metric not in scalars:
            known = [name for name in _METRICS if name in scalars]
            raise UserError(f"--at-least {metric}=: needs several labels per image. Metrics here: {', '.join(known)}.")
    return [
        f"{metric} {scalars[metric]:.6g} is below {floor:g}"
        for metric, floor in floors.items()
        if not scalars[metric] >= floor
    ]
