"""The contact sheet: it contains every image requested, and escapes names."""

import torch

from finetune.report.contact_sheet import Group, Tile, contact_sheet


def test_the_page_holds_every_group_and_says_what_cannot_be_shown() -> None:
    def pictures(path: str) -> torch.Tensor | None:
        return None if "gone" in path else torch.full((3, 300, 200), 90, dtype=torch.uint8)

    groups = [
        Group(title="first", tiles=[Tile(path="/a/b.png", lines=["label", "0.25"], mark="asked")], more=7),
        Group(title="second", tiles=[Tile(path="/a/gone.png", mark="wrong"), Tile(path="/a/c.png", mark="right")]),
    ]
    page = contact_sheet(title="Neighbours", facts=["12 images."], groups=groups, pictures=pictures)
    assert page.count("<h2>") == 2
    assert page.count("<figure") == 3
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert page.count("cannot be shown") == 1
    for text in ("and 7 more", "label<br>", "0.25<br>", "b.png", "<b>query</b>", "<b>other label</b>", "12 images."):
        assert text in page, text


def test_names_cannot_become_part_of_the_page() -> None:
    evil = '"><script>alert(1)</script>\x1b.png'
    groups = [Group(title=evil, tiles=[Tile(path=evil, lines=[evil])])]
    page = contact_sheet(title=evil, facts=[evil], groups=groups, pictures=lambda path: None)
    assert "<script" not in page
    assert "\x1b" not in page
