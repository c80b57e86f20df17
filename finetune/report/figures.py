"""Matplotlib figures as SVG inside a page: text stays text, and colours follow the page's light or dark theme."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:  # matplotlib takes half a second to import, and most runs of a program draw nothing
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# stand-ins for what the page decides; no picture uses these colours for anything else
INK, MUTED, GRID, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--paper)"}

# of a file of its own; inside a page the variables are those of templates/style.css
_THEMES = (
    "svg { --ink: #1c2430; --muted: #5b6675; --line: #dde2e8; --paper: #ffffff; "
    "--font: system-ui, sans-serif; background: var(--paper) } "
    "@media (prefers-color-scheme: dark) { svg { --ink: #e4e8ee; --muted: #98a3b3; --line: #333b47; --paper: #14181e } }"
)

# seen well on white and on near black, and told apart by most who are colour-blind
SERIES = ("#3b7dd8", "#e07b39", "#2f9e77", "#c94f7c", "#8a63d2", "#b5932a", "#4aa5c4", "#d1495b")
HIT, MISS = "#3b7dd8", "#d9534f"

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "finetune",
    # a class called "$1$" is not mathematics
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    # a factor above the axis would stand where the names of the phases do
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-7, 7),
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Around everything that makes a figure for the page."""
    import matplotlib

    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # its font only measures: the browser draws the letters, and has others for what this one lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width: float, height: float) -> "Figure":
    """A figure of a size in inches, without pyplot: no display and no global state are touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def inline_svg(figure: "Figure", *, name: str, says: str, fixed: bool = False) -> Markup:
    """The figure as an ``<svg>`` element.

    Args:
        figure: Drawn inside :func:`drawing`.
        name: Makes the ids inside unlike those of other pictures of the page.
        says: What it shows, for those who cannot see it.
        fixed: Whether it keeps its size, in a frame of its own that scrolls.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib's rule for every element would apply to the whole page, whose style has it for pictures
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    width = re.search(r'width="([\d.]+)pt"', text)
    assert width is not None
    pixels = float(width[1]) * 4 / 3
    text = re.sub(r'(<svg [^>]*?)height="[\d.]+pt"', r"\1", text, count=1)
    # a picture of fixed size is what it is; others fill their column, within reason
    width_css = f"{pixels:.0f}px" if fixed else f"100%; max-width: {1.5 * pixels:.0f}px"
    text = text.replace(
        f'width="{width[1]}pt"',
        f'role="img" aria-label="{escape(says)}" style="width: {width_css}"',
        1,
    )
    # groups are numbered anew in every figure, and an id must be the page's only one of its name
    text = re.sub(r'<g id="[a-zA-Z]+[\w.]*_\d+"', "<g", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font(-family)?: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font\1: \2var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # matplotlib has escaped every text in it
    return Markup(text)


def svg_file(figure: "Figure", *, name: str, says: str) -> str:
    """The figure as an SVG file of its own, which follows the viewer's light or dark theme.

    Args:
        figure: Drawn inside :func:`drawing`.
        name: Prefix of the ids inside.
        says: What it shows, for those who cannot see it.
    """
    svg = str(inline_svg(figure, name=name, says=says))
    head, rest = svg.split(">", 1)
    return f"{head}>\n<style>{_THEMES}</style>{rest}"


def plain_log_ticks(axis: "Axis") -> None:
    """Powers of ten as plain text: mathematics is off."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        """Those ticks that matplotlib would name, as short as they can be."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain(labelOnlyBase=False))
    axis.set_minor_formatter(Plain(labelOnlyBase=False, minor_thresholds=(1.5, 0.4)))
