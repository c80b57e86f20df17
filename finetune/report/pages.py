"""Self-contained HTML pages: templates with one shared style, light and dark."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finetune.terminal import encodable, printable

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **values: Any) -> str:
    """Render a template as a page; every value is escaped unless it is ``Markup``.

    Args:
        template: Name of a file in ``report/templates``.
        **values: Values that the template shows.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["shown"] = printable
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}%"
    style = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    # file names may hold bytes that cannot be encoded as UTF-8
    return encodable(environment.get_template(template).render(style=style, **values))
