"""The ladder's HTML page: its table, accuracy against time, and the learning curve."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from finetune.ladder_result import LadderResult, RungResult
from finetune.report.figures import GRID, MUTED, SERIES, drawing, inline_svg, new_figure, plain_log_ticks
from finetune.report.pages import render_page


def ladder_page(result: LadderResult, *, more_data: str | None) -> str:
    """Render the ladder as one self-contained HTML page.

    Args:
        result: The finished ladder.
        more_data: Conclusion from the learning curve; None without one.
    """
    return render_page(
        "ladder.html",
        command=result.command,
        result=result,
        rungs=result.rungs,
        recommended=result.recommended,
        train_it=result.train_it,
        more_data=more_data,
        rungs_chart=_accuracy_against_size(result.rungs)
        if result.compares_networks
        else _accuracy_against_time(result.rungs),
        curve_chart=_learning_curve(result.learning_curve),
    )


def _accuracy_against_time(rungs: Sequence[RungResult]) -> Markup:
    """Plot test accuracy over seconds; the area of a point grows with its number of trained parameters."""
    shown = [rung for rung in rungs if rung.seconds > 0]
    return _accuracy_against(
        shown,
        [rung.seconds for rung in shown],
        label="seconds of training, one seed (larger points train more parameters)",
        description="Test accuracy of each strategy against its training time",
    )


def _accuracy_against_size(rungs: Sequence[RungResult]) -> Markup:
    """Plot test accuracy over the size of the network, in millions of parameters."""
    return _accuracy_against(
        rungs,
        [(rung.parameters or 0) / 1e6 for rung in rungs],
        label="million parameters (larger points train more of them)",
        description="Test accuracy of each network against its number of parameters",
    )


def _accuracy_against(shown: Sequence[RungResult], costs: Sequence[float], *, label: str, description: str) -> Markup:
    """Plot test accuracy with its interval over a cost, on a logarithmic axis."""
    with drawing():
        figure = new_figure(8, 4.5)
        axes = figure.subplots()
        if shown:
            sizes = [30 + 25 * math.log10(1 + rung.trained) for rung in shown]
            accuracy = [100 * rung.test for rung in shown]
            ends = [rung.test_range() or (rung.test, rung.test) for rung in shown]
            down = [100 * (rung.test - low) for rung, (low, _) in zip(shown, ends, strict=True)]
            up = [100 * (high - rung.test) for rung, (_, high) in zip(shown, ends, strict=True)]
            if any(down) or any(up):
                axes.errorbar(costs, accuracy, yerr=[down, up], fmt="none", ecolor=MUTED)
            axes.scatter(costs, accuracy, s=sizes, color=SERIES[0], zorder=3)
            # above and below in turn, so that names of neighbours do not overlap
            for place, (cost, rung) in enumerate(sorted(zip(costs, shown, strict=True), key=lambda pair: pair[0])):
                at = (cost, 100 * rung.test)
                axes.annotate(rung.name, at, xytext=(7, -15 if place % 2 else 7), textcoords="offset points")
            axes.margins(y=0.12)
            axes.set_xscale("log")
            plain_log_ticks(axes.xaxis)
        axes.set_xlabel(label)
        axes.set_ylabel("test accuracy, %")
        axes.grid(color=GRID)
        return inline_svg(figure, name="rungs", description=description)


def _learning_curve(curves: Sequence[Sequence[Mapping[str, float]]]) -> Markup:
    """Plot test accuracy of a probe on frozen features over images per class, one line per seed."""
    with drawing():
        figure = new_figure(8, 4.5)
        axes = figure.subplots()
        for seed, curve in enumerate(curves):
            axes.plot(
                [point["per_class"] for point in curve],
                [100 * point["test"] for point in curve],
                marker="o",
                markersize=4,
                color=SERIES[seed % len(SERIES)],
                label=f"seed {seed}",
            )
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
        axes.set_xlabel("labelled images per class")
        axes.set_ylabel("test accuracy of a probe on frozen features, %")
        axes.grid(color=GRID)
        if curves:
            # below the axis, so that no curve runs under it
            figure.legend(loc="outside lower center", ncols=6)
        return inline_svg(
            figure, name="curve", description="Test accuracy of the probe against the number of labelled images"
        )
