import numpy as np
import pytest

from finetune.data.near_duplicates import Copies, near_duplicates, small_copies
from tests.benchmarks.planted_copies import KINDS, generated, pixels, plant


def copies_among(pictures):
    rows = np.arange(len(pictures))
    return near_duplicates(rows, small_copies(rows, pictures.__getitem__), pictures.__getitem__)


@pytest.fixture(scope="module")
def found():
    """Fifty kinds of copies, one each, among pictures of which none is a copy."""
    pictures, planted = plant([generated(number, side=96) for number in range(len(KINDS))])
    pictures += [pixels(generated(number, side=96)) for number in range(1000, 1100)]
    return copies_among(pictures), planted


def test_forty_five_of_fifty_kinds_of_copies_are_found(found):
    copies, planted = found
    assert len(planted) == len(KINDS) == 50
    missed = [kind for pair, kind in planted.items() if pair not in copies.pairs]
    assert len(missed) <= 5, missed


def test_pictures_that_are_no_copies_are_not_found(found):
    copies, planted = found
    assert [pair for pair in copies.pairs if pair not in planted] == []
    assert copies.of_one_kind == 0


def test_pictures_of_one_kind_are_not_taken_for_copies():
    # the same grid on every picture, and a little of its own
    pattern = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((8, 8))) * 120 + 60
    random = np.random.default_rng(0)
    pictures = [pattern + random.normal(0, 6, pattern.shape) for _ in range(80)]
    import torch

    small = torch.from_numpy(np.stack(pictures).clip(0, 255).astype(np.uint8))
    copies = near_duplicates(np.arange(80), small, lambda row: small[row][None])
    assert copies.pairs == []
    assert copies.of_one_kind == 80


@pytest.mark.parametrize("pictures", [[], [3], [3, 3]])
def test_few_pictures_and_pictures_without_structure_have_no_copies(pictures):
    import torch

    small = (
        torch.stack([torch.full((64, 64), level, dtype=torch.uint8) for level in pictures])
        if pictures
        else (torch.zeros(0, 64, 64, dtype=torch.uint8))
    )
    assert near_duplicates(np.arange(len(pictures)), small, lambda row: small[row][None]).pairs == []


def test_a_set_of_pictures_of_one_kind_is_said_to_be_uncertain():
    assert Copies(pairs=[], agreement=[], threshold=0.97).uncertain
    assert not Copies(pairs=[], agreement=[], threshold=0.88).uncertain


def test_plain_grounds_outlines_and_letters_are_not_taken_for_copies():
    from PIL import Image, ImageDraw

    random = np.random.default_rng(0)
    pictures = []
    for number in range(60):
        ground, front = (tuple(random.integers(0, 256, 3).tolist()) for _ in range(2))
        image = Image.new("RGB", (120, 120), ground)
        draw = ImageDraw.Draw(image)
        x, y, w, h = *random.uniform(20, 50, 2).tolist(), *random.uniform(35, 60, 2).tolist()
        if number % 3 == 0:
            draw.ellipse((x, y, x + w, y + h), fill=front)
        elif number % 3 == 1:
            draw.rectangle((x, y, x + w, y + h), fill=front)
        else:
            draw.text((x, y - 10), "OQCGU"[number % 5], fill=front, font_size=70 + number // 3)
        pictures.append(pixels(image))
    copies = copies_among(pictures)
    assert (copies.pairs, copies.of_one_kind) == ([], 0)


def drawing(draw_on, *, side=240, ground="white"):
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side), ground)
    draw_on(ImageDraw.Draw(image))
    return image


def card(rank, pips, *, ground="white", ink="black"):
    """A playing card with its rank in two corners."""

    def draw_on(draw):
        draw.rounded_rectangle((20, 4, 220, 236), 16, fill=ground, outline="black", width=3)
        for x, y in ((36, 12), (186, 190)):
            draw.text((x, y), rank, fill=ink, font_size=34)
        for x, y in pips:
            draw.polygon([(x, y - 16), (x + 13, y), (x, y + 16), (x - 13, y)], fill=ink)

    return drawing(draw_on, ground="grey")


def flag(emblem):
    """A flag of two crosses with an emblem in its corner."""

    def draw_on(draw):
        for width, colour in ((44, "white"), (20, "red")):
            draw.line((0, 0, 240, 240), fill=colour, width=width // 2)
            draw.line((240, 0, 0, 240), fill=colour, width=width // 2)
            draw.line((120, 0, 120, 240), fill=colour, width=width)
            draw.line((0, 120, 240, 120), fill=colour, width=width)
        draw.rectangle((164, 150, 216, 214), fill="white")
        draw.text((172, 152), emblem, fill="black", font_size=50)

    return drawing(draw_on, ground="navy")


def sign(letters):
    """A road sign with words on it."""

    def draw_on(draw):
        draw.polygon([(120, 10), (232, 160), (8, 160)], fill="white", outline="red", width=14)
        draw.text((92, 100), letters, fill="black", font_size=32)
        for place in range(0, 240, 30):
            draw.polygon([(place, 170), (place + 15, 170), (place + 30, 236), (place + 15, 236)], fill="black")
            draw.rectangle((place, 4, place + 14, 18), fill="darkblue")

    return drawing(draw_on, ground="lightblue")


def tile(letters):
    """Letters on a tile with a pattern around them."""

    def draw_on(draw):
        for place in range(0, 240, 30):
            for edge in (4, 36, 184, 216):
                for x, y in ((place, edge), (edge, place)):
                    draw.polygon([(x, y + 20), (x + 10, y), (x + 20, y + 20)], fill="darkgreen")
        draw.text((95, 85), letters, fill="black", font_size=56)

    return drawing(draw_on, ground="beige")


def edge(turns):
    """A pattern whose border is thick at one of its sides."""

    def draw_on(draw):
        for x in range(0, 240, 40):
            for y in range(0, 240, 40):
                draw.rectangle((x + 10, y + 10, x + 30, y + 30), outline="black", width=4)
        draw.rectangle((0, 0, 239, 24), fill="black")

    return drawing(draw_on).rotate(90 * turns)


PLACES = [
    (80, 60),
    (160, 60),
    (80, 100),
    (160, 100),
    (80, 140),
    (160, 140),
    (80, 180),
    (120, 80),
    (120, 120),
    (120, 160),
]
# pictures that only look like copies, by kind
LIKE_COPIES = {
    "cards of other ranks": lambda: [card(str(rank), PLACES[:rank]) for rank in (7, 8, 9, 10)],
    "cards of other suits": lambda: [card("9", PLACES[:9]), card("J", PLACES[:9], ink="red")],
    "flags with other emblems": lambda: [flag("A"), flag("8"), flag("X")],
    "signs with other letters": lambda: [sign("ABC"), sign("ABK"), sign("OBC")],
    "letters on equal tiles": lambda: [tile("C"), tile("G"), tile("O"), tile("b"), tile("d")],
    "cards in other colours": lambda: [card("9", PLACES[:9]), card("9", PLACES[:9], ground="khaki")],
    "patterns with one side thick": lambda: [edge(turns) for turns in range(4)],
}


@pytest.mark.parametrize("kind", LIKE_COPIES)
def test_drawings_of_one_series_are_not_taken_for_copies(kind):
    copies = copies_among([pixels(image) for image in LIKE_COPIES[kind]()])
    assert (copies.pairs, copies.of_one_kind) == ([], 0)


def test_a_drawing_of_another_size_and_other_bytes_is_a_copy():
    from tests.benchmarks.planted_copies import jpeg, scaled

    drawings = [card("9", PLACES[:9]), flag("A"), sign("ABC"), tile("G")]
    copied = [
        jpeg(70)(card("9", PLACES[:9])),
        scaled(0.8)(flag("A")),
        jpeg(40)(sign("ABC")),
        scaled(1.5)(tile("G")),
    ]
    copies = copies_among([pixels(image) for image in (*drawings, *copied)])
    assert copies.pairs == [(0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize("kind", ["logo in a corner", "text across", "watermark all over"])
def test_a_photograph_with_a_mark_on_it_is_a_copy(kind):
    photograph = generated(3, side=240)
    copies = copies_among([pixels(photograph), pixels(KINDS[kind](photograph)), pixels(generated(4, side=240))])
    assert copies.pairs == [(0, 1)]


def test_an_audit_of_good_pictures_does_without_torchvision():
    import subprocess
    import sys

    code = "import sys, finetune.data.audit, finetune.report.audit_page; print('torchvision' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
