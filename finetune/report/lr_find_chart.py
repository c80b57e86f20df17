"""Chart of a learning-rate search."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.atomic_files import write_text
from finetune.report.figures import GRID, HIT, INK, MISS, MUTED, drawing, new_figure, plain_log_ticks, svg_file

_COLORS = {"valley": MISS, "steepest": HIT}


def write_lr_find_chart(
    path: Path,
    *,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestions: Mapping[str, float],
    stage: str,
    title: str,
) -> None:
    """Draw the loss against the learning rate, with the suggestions marked, as an SVG file.

    Args:
        path: SVG file to write.
        rates: Learning rate of the fastest stage at each step.
        losses: Training loss at each step.
        smoothed: Smoothed training loss at each step.
        suggestions: Suggested learning rate, keyed by the rule's name.
        stage: Name of the fastest stage.
        title: Title of the figure.
    """
    with drawing():
        figure = new_figure(7.2, 4.2)
        axes = figure.subplots()
        bottom, top = loss_limits(losses, smoothed)
        inside = [min(loss, top) for loss in losses]
        curve = [min(loss, top) for loss in smoothed]
        axes.plot(rates, inside, ".", color=MUTED, markersize=4, label="loss of a step")
        axes.plot(rates, curve, color=INK, linewidth=2, label="smoothed")
        if above := [rate for rate, loss in zip(rates, losses, strict=True) if loss > top]:
            axes.plot(above, [top] * len(above), "^", color=MUTED, markersize=5, label="higher")
        for name, rate in suggestions.items():
            at = min(range(len(rates)), key=lambda i: abs(rates[i] - rate))
            axes.axvline(rate, color=_COLORS[name], linewidth=1, linestyle="--")
            axes.plot(rate, curve[at], "o", color=_COLORS[name], label=f"{name}: {rate:.3g}")
        axes.set_ylim(bottom, top + 0.05 * (top - bottom))
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
        axes.set_xlabel(f"learning rate of {stage}; the other stages keep their ratio to it")
        axes.set_ylabel("training loss")
        axes.set_title(title)
        axes.grid(color=GRID)
        figure.legend(loc="outside lower center", ncols=4)
        write_text(path, svg_file(figure, name="lr-find", description=title))


def loss_limits(losses: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest loss that the chart shows; what is higher is drawn at its upper edge.

    A search ends where the loss explodes, which would flatten the rest of the curve.

    Args:
        losses: Training loss at each step.
        smoothed: Smoothed training loss at each step.
    """
    low, high = min(losses), max(smoothed[: max(len(smoothed) // 2, 1)])
    room = max(high - low, 1e-3)
    return low - 0.1 * room, min(max(smoothed), high + 3 * room)
