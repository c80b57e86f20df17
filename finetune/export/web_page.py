"""The page that tries a model: with the model in it (``export --format web``), or behind a server (``finetune serve``)."""

from collections.abc import Sequence
from pathlib import Path

WEB_FILES = Path(__file__).parent / "web"
PAGE = "index.html"


def render_page(*, title: str, classes: Sequence[str], card: str, where: str, docs: bool = False) -> str:
    """Render the HTML; names and card are escaped, so HTML inside the card is displayed, not interpreted.

    Args:
        title: Heading of the page.
        classes: Class names.
        card: Model card in Markdown; empty for none.
        where: Sentence that says where images go.
        docs: Whether the page is served with a page for programs beside it.
    """
    from jinja2 import Environment
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    # only the Markdown that a card uses; raw HTML, images and links could leave the page
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "autolink"])
    template = Environment(autoescape=True).from_string((WEB_FILES / PAGE).read_text(encoding="utf-8"))
    # one level lower: the page has a heading of its own
    body = markdown.render(card.replace("\n#", "\n##")).replace("<h1>", "<h2>").replace("</h1>", "</h2>")
    return template.render(title=title, classes=list(classes), card=Markup(body), where=where, docs=docs) + "\n"
