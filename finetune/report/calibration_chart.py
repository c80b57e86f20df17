"""Reliability diagram: how often predictions of each confidence are right."""

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from finetune.confidence.temperature import BINS, Reliability
from finetune.report.figures import MUTED, SERIES, drawing, inline_svg, new_figure


def calibration_chart(curves: Mapping[str, Reliability], *, multi_label: bool) -> Markup:
    """Plot the fraction that is right against confidence for each curve, and below it the number of answers.

    Args:
        curves: Curves by name; the first belongs to the unscaled model.
        multi_label: Whether an answer is one class of one image rather than an image's predicted class.
    """
    from matplotlib.ticker import FuncFormatter

    edges = np.linspace(0, 1, BINS + 1)
    with drawing():
        figure = new_figure(4.1, 3.8)
        above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
        above.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)), label="perfectly calibrated")
        for (name, curve), colour, style in zip(curves.items(), SERIES, ("o-", "s--"), strict=False):
            filled = curve.counts > 0
            above.plot(
                curve.confidence[filled],
                curve.accuracy[filled],
                style,
                color=colour,
                markersize=4,
                label=name,
                linewidth=1.3,
            )
            below.stairs(curve.counts, edges, color=colour, linewidth=1.3)
        above.set_ylabel("share shown" if multi_label else "share correct")
        above.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        above.grid()
        below.set_yscale("symlog", linthresh=1)
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        below.set_ylabel("answers")
        below.set_xlabel(
            "probability of the class" if multi_label else "confidence (probability of the predicted class)"
        )
        below.set_xlim(0, 1)
        return inline_svg(figure, name="calibration", description="Share of correct predictions by confidence")
