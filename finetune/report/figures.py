"""Matplotlib figures as inline SVG: text stays text, and colours follow the page's light or dark theme."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:  # importing matplotlib takes half a second, and most commands draw nothing
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# placeholders for colours that the page sets; no figure uses these colours for anything else
INK, MUTED, GRID, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--paper)"}

# themes of a separate SVG file; inside a page, templates/style.css sets the variables
_THEMES = (
    "svg { --ink: #1c2430; --muted: #5b6675; --line: #dde2e8; --paper: #ffffff; "
    "--font: system-ui, sans-serif; background: var(--paper) } "
    "@media (prefers-color-scheme: dark) { svg { --ink: #e4e8ee; --muted: #98a3b3; --line: #333b47; --paper: #14181e } }"
)

# visible on white and on near black, and distinguishable with most kinds of colour blindness
SERIES = ("#3b7dd8", "#e07b39", "#2f9e77", "#c94f7c", "#8a63d2", "#b5932a", "#4aa5c4", "#d1495b")
HIT, MISS = "#3b7dd8", "#d9534f"

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "finetune",
    # a class called "$1$" is not mathematics
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    # an offset above the axis would overlap the names of the phases
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
    """Set matplotlib's parameters for figures of the pages; every figure must be made inside this context."""
    import matplotlib

    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # matplotlib only measures text with its font: the browser draws the letters and has fonts for missing glyphs
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Create a figure, size in inches, without pyplot, so that neither a display nor global state is touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def inline_svg(figure: "Figure", *, name: str, description: str, fixed: bool = False) -> Markup:
    """Return the figure as an ``<svg>`` element.

    Args:
        figure: Figure drawn inside :func:`drawing`.
        name: Prefix that makes the element ids differ from those of other figures on the page.
        description: Description of the figure for screen readers.
        fixed: Whether the figure keeps its size, in a frame that scrolls.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib's style rule would apply to the whole page; the page's style has the same rule for figures
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    width = re.search(r'width="([\d.]+)pt"', text)
    assert width is not None
    pixels = float(width[1]) * 4 / 3
    text = re.sub(r'(<svg [^>]*?)height="[\d.]+pt"', r"\1", text, count=1)
    # a fixed figure keeps its size; others fill their column, up to a limit
    width_css = f"{pixels:.0f}px" if fixed else f"100%; max-width: {1.5 * pixels:.0f}px"
    text = text.replace(
        f'width="{width[1]}pt"',
        f'role="img" aria-label="{escape(description)}" style="width: {width_css}"',
        1,
    )
    # matplotlib restarts its group numbers in every figure, but an id must be unique in the page
    text = re.sub(r'<g id="[a-zA-Z]+[\w.]*_\d+"', "<g", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font(-family)?: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font\1: \2var(--font)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # matplotlib has escaped all text in the figure
    return Markup(text)


def svg_file(figure: "Figure", *, name: str, description: str) -> str:
    """Return the figure as a separate SVG file that follows the viewer's light or dark theme.

    Args:
        figure: Figure drawn inside :func:`drawing`.
        name: Prefix of the element ids.
        description: Description of the figure for screen readers.
    """
    return standalone_svg(inline_svg(figure, name=name, description=description))


def standalone_svg(svg: str) -> str:
    """Return an ``<svg>`` element of a page as a file of its own, with the colours of both themes."""
    head, rest = str(svg).split(">", 1)
    return f"{head}>\n<style>{_THEMES}</style>{rest}"


def plain_log_ticks(axis: "Axis") -> None:
    """Label logarithmic ticks as plain text, because mathematical text is off."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        """Formats the ticks that matplotlib would label, as briefly as possible."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain(labelOnlyBase=False))
    axis.set_minor_formatter(Plain(labelOnlyBase=False, minor_thresholds=(1.5, 0.4)))
