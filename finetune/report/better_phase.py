"""The phase after which the monitored metric was better than at the end, and the setting that stops there."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.monitors import built_in, minimizes
from finetune.results import PhaseResult
from finetune.terminal import printable


def better_phase(
    phases: Sequence[PhaseResult], configured: Sequence[Mapping[str, Any]], *, images: int | None = None
) -> str:
    """Return a sentence on an earlier phase that was better than the last one; empty if there is none.

    Args:
        phases: Results of the phases; one that kept its start changed nothing.
        configured: Settings of the phases, as ``config.yaml`` has them.
        images: Validation images; a share, such as an accuracy, must then be better by more than its standard error, which is
            what one image more or less often is. None asks for no margin.
    """
    numbered = [(number, phase) for number, phase in enumerate(phases) if phase.restored != "start"]
    if any(phase.restored == "last" and phase.best_epoch + 1 != phase.epochs for _, phase in numbered):
        # the best epochs of these phases are known, and not what their weights were passed on with
        return ""
    _, last = numbered[-1]
    metric, end = next(iter(last.best.items()))
    if metric not in built_in(multi_label=True):
        # a result does not say of a user-supplied metric whether smaller values are better
        return ""
    smaller_is_better = minimizes(metric)
    sign = -1 if smaller_is_better else 1
    values = [sign * phase.best.get(metric, -sign * float("inf")) for _, phase in numbered]
    value = max(values)
    margin = math.sqrt(end * (1 - end) / images) if images and not smaller_is_better else 0.0
    if not value > values[-1] + margin:
        return ""
    number, phase = numbered[values.index(value)]
    which = "the last phase" if last is phases[-1] else "a later phase"
    return (
        f"{metric} was best after phase {printable(phase.name)}: {sign * value:.4f}. The model kept is that of {which}, "
        f"{printable(last.name)}: {end:.4f}. To stop earlier, train with '{stops_after(configured, number)}'"
    )


def wrapped_sentences(text: str, width: int = 78) -> str:
    """Return the sentence in lines of a terminal; the setting at its end, which is to be copied, keeps a line of its own.

    >>> print(wrapped_sentences("It was best. To stop earlier, train with 'a=[b, c]'", 20))
    It was best. To stop
    earlier, train with
      'a=[b, c]'
    """
    before, quote, setting = text.partition("'")
    lines = textwrap.wrap(before, width)
    return "\n".join([*lines, *([f"  {quote}{setting}"] if quote else [])])


def stops_after(configured: Sequence[Mapping[str, Any]], number: int) -> str:
    """Return the override that keeps the phases up to one, with the settings that they have.

    >>> stops_after([{"name": "head", "train": ["head"], "lr": None}, {"name": "all", "train": ["all"]}], 0)
    'schedule.phases=[{name: head, train: [head]}]'
    """
    return f"schedule.phases={_written(list(configured[: number + 1]))}"


def _written(value: Any) -> str:
    """Return a value in Hydra's grammar, without settings that are null or empty."""
    if isinstance(value, Mapping):
        set_ = {key: inner for key, inner in value.items() if inner not in (None, [], {})}
        return "{" + ", ".join(f"{key}: {_written(inner)}" for key, inner in set_.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if not isinstance(value, str) or re.fullmatch(r"[\w./-]+", value) else f'"{value}"'
