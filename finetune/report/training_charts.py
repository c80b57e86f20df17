"""Charts of a run's training: plan, curves, learning rates, weight movement and gradients."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from finetune.report.figures import GRID, INK, MUTED, SERIES, drawing, inline_svg, new_figure, plain_log_ticks
from finetune.report.run_files import Cell, RunFiles
from finetune.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# inches; letters stay readable where a phone shrinks the chart
WIDTH = 4.1
# with more lines, not all are named in the legend
_NAMED = 8


def plan_chart(run: RunFiles) -> Markup:
    """Draw stages by phases with each trained stage's peak learning rate; a phase's width is its fraction of the epochs."""
    rates: list[list[float | None]] = []
    for stage in run.stages:
        # a phase solved in closed form has no learning rate
        rates.append([p.rates.get(stage) if stage in p.train else 0.0 for p in run.results.phases])
    shown = [["solved" if rate is None else f"{rate:.2g}" if rate else "frozen" for rate in row] for row in rates]
    return _grid(run, rates, shown, name="plan", description="Stages by phases with their peak learning rates")


def movement_chart(run: RunFiles, moved: Sequence[Mapping[str, float | None]]) -> Markup:
    """Draw stages by phases with the relative distance that each stage's weights moved."""
    values = [[entry[stage] for entry in moved[: len(run.plan)]] for stage in run.stages]
    shown = [[_percent(value) for value in row] for row in values]
    return _grid(run, values, shown, name="moved", description="Stages by phases with how far the weights moved")


def _percent(value: float | None) -> str:
    """Format a relative distance; exactly zero differs from almost zero.

    >>> _percent(0.0), _percent(0.00004), _percent(0.123), _percent(3.9), _percent(None), _percent(790)
    ('0', '0.004%', '12%', '390%', 'from 0', '790 ×')
    """
    if value is None:
        return "from 0"
    if value >= 10:
        return f"{value:,.0f} ×"
    if value >= 1:
        return f"{100 * value:.0f}%"
    return f"{100 * value:.2g}%" if value else "0"


def _grid(
    run: RunFiles,
    values: Sequence[Sequence[float | None]],
    shown: Sequence[Sequence[str]],
    *,
    name: str,
    description: str,
) -> Markup:
    """Draw cells of stages (head on top) by phases, shaded by the logarithm of their values."""
    epochs = [max(phase.epochs, 1) for phase in run.results.phases]
    # keeps every phase wide enough for its numbers
    widths = np.maximum(np.array(epochs) / sum(epochs), 0.6 / len(epochs))
    edges = np.concatenate([[0], np.cumsum(widths / widths.sum())])
    positive = [value for row in values for value in row if value]
    low, high = (np.log(min(positive)), np.log(max(positive))) if positive else (0.0, 1.0)
    with drawing():
        figure = new_figure(WIDTH, 0.75 + 0.27 * len(run.stages))
        axes = figure.subplots()
        for y, (row, texts) in enumerate(zip(values, shown, strict=True)):
            for x, (value, text) in enumerate(zip(row, texts, strict=True)):
                share = (np.log(value) - low) / max(high - low, 1e-9) if value else 0.0
                alpha = 0.25 + 0.6 * share if value or value is None else 0.0
                left, width = edges[x], edges[x + 1] - edges[x]
                axes.barh(y, width - 0.008, 0.88, left + 0.004, color=SERIES[0], alpha=alpha, linewidth=0)
                if not alpha:
                    axes.barh(y, width - 0.008, 0.88, left + 0.004, color="none", edgecolor=GRID, linewidth=0.8)
                axes.text(
                    left + width / 2, y, text, ha="center", va="center", color=INK if alpha else MUTED, fontsize=8
                )
        axes.set_yticks(range(len(run.stages)), [printable(stage) for stage in run.stages])
        names = [f"{printable(phase.name)}\n{phase.epochs} ep." for phase in run.results.phases]
        axes.set_xticks((edges[:-1] + edges[1:]) / 2, names)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.5, len(run.stages) - 0.5)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return inline_svg(figure, name=name, description=description)


def curve_charts(run: RunFiles) -> list[Markup]:
    """Plot loss and accuracy of training and validation over the whole run, with phases and their best epochs."""
    several = "share with all classes correct" if run.multi_label else "accuracy"
    charts = [
        ("loss", "loss", {"train/loss": "training", "val/loss": "validation"}),
        ("metric", several, {"train/acc": "training", "val/acc": "validation", "val/f1_macro": "validation, macro F1"}),
    ]
    if run.multi_label:
        charts[1][2]["val/map"] = "validation, mean average precision"
    return [_curves(run, name=name, label=label, columns=columns) for name, label, columns in charts]


def _curves(run: RunFiles, *, name: str, label: str, columns: Mapping[str, str]) -> Markup:
    with drawing():
        figure = new_figure(WIDTH, 3.1)
        axes = figure.subplots()
        for (column, legend), colour in zip(columns.items(), SERIES, strict=False):
            values = _numbers(run.column(column))
            if np.isfinite(values).any():
                axes.plot(_epochs(run), values, color=colour, label=legend, marker="." if len(values) < 12 else None)
        best = [number for number in best_epochs(run) if number < len(run.epochs)]
        main = "val/loss" if name == "loss" else "val/acc"
        heights = _numbers(run.column(main))[best]
        axes.plot(np.array(best) + 1, heights, "o", color="none", markeredgecolor=INK, markersize=8, label="best epoch")
        _phases(axes, run)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(axis="y")
        # below the axis, so that no curve runs under it
        figure.legend(loc="outside lower center", ncols=2)
        return inline_svg(figure, name=name, description=f"{label} over the epochs of the run")


def rate_chart(run: RunFiles) -> Markup | None:
    """Plot the learning rate of each stage at the end of each epoch; its two groups share one. None if there is none."""
    groups: dict[str, str] = {}
    for row in run.epochs:
        for column in row:
            if column.startswith("lr/"):
                groups.setdefault(column.removeprefix("lr/").rpartition("/")[0], column)
    if not groups:
        return None
    # a schedule that ends at zero would squeeze everything else against the upper edge
    return _by_stage(run, groups, name="rates", label="learning rate, end of epoch", decades=3)


def gradient_chart(run: RunFiles) -> Markup | None:
    """Plot the mean gradient norm of each stage in each epoch; None if it was not logged."""
    columns = {column.removeprefix("grad/"): column for row in run.epochs for column in row if "grad/" in column}
    return _by_stage(run, columns, name="gradients", label="gradient norm") if columns else None


def _by_stage(run: RunFiles, columns: Mapping[str, str], *, name: str, label: str, decades: int = 0) -> Markup:
    """Plot a line per stage, broken between phases; a non-zero ``decades`` cuts values that far below the largest."""
    import matplotlib

    ramp = matplotlib.colormaps["plasma"]
    lines: dict[bytes, tuple[list[str], NDArray[np.float64]]] = {}
    highest = 0.0
    for stage in (stage for stage in run.stages if stage in columns):
        values = _numbers(run.column(columns[stage]))
        values[values <= 0] = np.nan
        highest = max(highest, float(np.nanmax(values, initial=0)))
        # stages with identical values share a line; otherwise one would hide the others
        lines.setdefault(values.tobytes(), ([], values))[0].append(stage)
    named = {round(place) for place in np.linspace(0, len(lines) - 1, min(len(lines), _NAMED))}
    with drawing():
        figure = new_figure(WIDTH, 2.9)
        axes = figure.subplots()
        for place, (stages, values) in enumerate(lines.values()):
            shade = ramp(0.22 + 0.63 * place / max(len(lines) - 1, 1))
            legend = printable(stages[0] if len(stages) == 1 else f"{stages[0]} … {stages[-1]}")
            label_or_none = legend if place in named else None
            for start, end in _spans(run):
                marker = "." if len(values) < 12 or end - start == 1 else None
                axes.plot(_epochs(run)[start:end], values[start:end], color=shade, label=label_or_none, marker=marker)
                label_or_none = None
        _phases(axes, run)
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)
        if decades and highest and axes.get_ylim()[0] < highest * 10**-decades:
            axes.set_ylim(bottom=highest * 10**-decades)
            label = f"{label}\n(a line that leaves the axis goes on to nearly 0)"
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(axis="y")
        # the head on top, as in the plan's grid
        axes.legend(reverse=True, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return inline_svg(figure, name=name, description=f"{label} of each stage over the epochs of the run")


def best_epochs(run: RunFiles) -> list[int]:
    """Return the best epoch of each phase that was better than its start, counted from 0 over the whole run."""
    return [
        start + phase.best_epoch
        for (start, _), phase in zip(_spans(run), run.results.phases, strict=True)
        if phase.restored != "start"
    ]


def _spans(run: RunFiles) -> list[tuple[int, int]]:
    """Return the first epoch of each phase, and the epoch after its last."""
    ends = list(itertools.accumulate(phase.epochs for phase in run.results.phases))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _epochs(run: RunFiles) -> NDArray[np.int64]:
    return np.arange(1, len(run.epochs) + 1)


def _numbers(values: Sequence[Cell]) -> NDArray[np.float64]:
    return np.array([value if isinstance(value, float) else np.nan for value in values])


def _phases(axes: "Axes", run: RunFiles) -> None:
    """Draw boundaries between phases, and their names above."""
    start = 0.5
    for number, phase in enumerate(run.results.phases):
        end = start + phase.epochs
        if number:
            axes.axvline(start, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.text(
            (start + end) / 2,
            1.02,
            printable(phase.name),
            transform=axes.get_xaxis_transform(),
            ha="center",
            color=MUTED,
            fontsize=8,
        )
        start = end
    axes.set_xlim(0.5, start)
    from matplotlib.ticker import MaxNLocator

    last = len(run.epochs)
    if last <= 8:
        axes.set_xticks(range(1, last + 1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
