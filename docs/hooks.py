"""What the site adds to the pages in this folder: the page of settings, and links in the page of the API."""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent.parent))

from finetune.config.settings import as_markdown

# cross-references of docstrings, as Sphinx writes them
_ROLE = re.compile(r":(?:class|func|mod|meth):<code>~?([\w.]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of settings, from the texts that ``finetune settings`` shows."""
    files.append(File.generated(config, "settings.md", content=as_markdown()))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the cross-references of docstrings into links where the page has their target."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        code = f"<code>{name}</code>"
        return f'<a href="#{name}">{code}</a>' if f'id="{name}"' in html else code

    return _ROLE.sub(link, html)
