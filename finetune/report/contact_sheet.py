"""A page of small pictures in groups: neighbours of queries, members of clusters, labels in doubt."""

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
# gives the picture of a path or a stored name; None where it cannot be read
Pictures = Callable[[str], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture.

    Args:
        path: Of the image.
        lines: Below it, such as label and distance.
        mark: ``asked`` for a query, ``right`` and ``wrong`` where labels agree with it or not, ``unsure`` for one in doubt.
    """

    path: str
    lines: Sequence[str] = ()
    mark: Mark = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pictures that are shown in one row.

    Args:
        title: Above it.
        tiles: The pictures.
        more: How many further ones there are.
    """

    title: str
    tiles: Sequence[Tile]
    more: int = 0


def contact_sheet(*, title: str, facts: Sequence[str], groups: Sequence[Group], pictures: Pictures) -> str:
    """The page as HTML, with its pictures inside.

    Args:
        title: Of the page.
        facts: Sentences at its top.
        groups: In order.
        pictures: Reads an image.
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
