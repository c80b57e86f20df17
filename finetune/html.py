"""Tables as HTML, for notebooks: results, plans and audits show themselves by ``_repr_html_``."""

from collections.abc import Iterable, Sequence
from html import escape

# rows of one table that a notebook shows
MOST_ROWS = 60


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """Return a table as HTML; every text in it is escaped.

    >>> html_table(["class"], [["<b>"]])
    '<table><thead><tr><th>class</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    listed = list(rows)
    cells = ["".join(f"<td>{escape(_cell(value))}</td>" for value in row) for row in listed[:MOST_ROWS]]
    if len(listed) > MOST_ROWS:
        cells.append(f'<td colspan="{len(columns)}">and {len(listed) - MOST_ROWS:,} more</td>')
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html_text(text: str) -> str:
    """Return preformatted text as HTML, escaped."""
    return f"<pre>{escape(text)}</pre>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
