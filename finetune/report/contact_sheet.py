"""Contact sheet: a page of thumbnails in groups, such as neighbours of queries, cluster members, or doubtful labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from finetune.report.pages import render_page
from finetune.report.thumbnails import thumbnail
from finetune.terminal import printable

Mark = Literal["", "asked", "right", "wrong", "unsure"]
_WORDS = {"": "", "asked": "query", "right": "same label", "wrong": "other label", "unsure": "doubtful"}
# returns the image of a path or a stored name; None if it cannot be read
Pictures = Callable[[str], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One image of a contact sheet.

    Args:
        path: Path of the image.
        lines: Lines of text below it, such as label and distance.
        mark: ``asked`` for a query, ``right`` or ``wrong`` where its label agrees with the query's or not, ``unsure`` for a
            doubtful label.
    """

    path: str
    lines: Sequence[str] = ()
    mark: Mark = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that are shown in one row.

    Args:
        title: Title above the row.
        tiles: Images to show.
        more: Number of further images that are not shown.
    """

    title: str
    tiles: Sequence[Tile]
    more: int = 0


def contact_sheet(*, title: str, facts: Sequence[str], groups: Sequence[Group], pictures: Pictures) -> str:
    """Render the page as HTML with its images embedded.

    Args:
        title: Title of the page.
        facts: Sentences at the top of the page.
        groups: Rows of images, in order.
        pictures: Function that reads an image.
    """
    shown = [
        {"title": printable(group.title), "more": group.more, "tiles": [_shown(tile, pictures) for tile in group.tiles]}
        for group in groups
    ]
    return render_page(
        "contact_sheet.html", title=printable(title), facts=[printable(fact) for fact in facts], groups=shown
    )


def _shown(tile: Tile, pictures: Pictures) -> dict[str, object]:
    image = pictures(tile.path)
    return {
        "image": None if image is None else thumbnail(image),
        "path": printable(tile.path),
        "name": printable(Path(tile.path).name),
        "lines": [printable(line) for line in tile.lines],
        "mark": tile.mark,
        "words": _WORDS[tile.mark],
    }
