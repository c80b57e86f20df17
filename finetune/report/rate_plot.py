"""The picture of a learning-rate search."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.atomic_files import atomic_path

_COLOURS = {"valley": "#d1495b", "steepest": "#2e8b57"}


def plot_rates(
    path: Path,
    *,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestions: Mapping[str, float],
    stage: str,
    title: str,
) -> None:
    """Draw the loss over the rate, with the suggestions marked, as SVG.

    Args:
        path: The file.
        rates: Rate of the fastest stage at each step.
        losses: Of each step.
        smoothed: Likewise, without the noise.
        suggestions: Rate by the name of the rule.
        stage: The fastest stage.
        title: Above the picture.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # without pyplot, so that no display and no global state are touched; text as text, and ids that do not change
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "finetune"}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(rates, losses, ".", color="#9aa5b1", markersize=4, label="loss of a step")
        axes.plot(rates, smoothed, color="#1f3a5f", linewidth=2, label="smoothed")
        for name, rate in suggestions.items():
            at = min(range(len(rates)), key=lambda i: abs(rates[i] - rate))
            axes.axvline(rate, color=_COLOURS[name], linewidth=1, linestyle="--")
            axes.plot(rate, smoothed[at], "o", color=_COLOURS[name], label=f"{name}: {rate:.3g}")
        # the end of a sweep is its explosion, which would press everything else flat
        low, high = min(losses), max(smoothed[: max(len(smoothed) // 2, 1)])
        room = max(high - low, 1e-3)
        axes.set_ylim(low - 0.1 * room, high + 0.8 * room)
        axes.set_xscale("log")
        axes.set_xlabel(f"learning rate of {stage}; the other stages keep their ratio to it")
        axes.set_ylabel("training loss")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_path(path) as part:
            figure.savefig(part, format="svg", metadata={"Date": None})
