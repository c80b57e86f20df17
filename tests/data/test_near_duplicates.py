import numpy as np
import pytest

from finetune.data.near_duplicates import Copies, near_duplicates, small_copies
from tests.benchmarks.planted_copies import KINDS, generated, pixels, plant


@pytest.fixture(scope="module")
def found():
    """Fifty kinds of copies, one each, among pictures of which none is a copy."""
    pictures, planted = plant([generated(number, side=96) for number in range(len(KINDS))])
    pictures += [pixels(generated(number, side=96)) for number in range(1000, 1100)]
    rows = np.arange(len(pictures))
    return near_duplicates(rows, small_copies(rows, lambda row: pictures[row])), planted


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
    copies = near_duplicates(np.arange(80), small)
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
    assert near_duplicates(np.arange(len(pictures)), small).pairs == []


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
    rows = np.arange(len(pictures))
    copies = near_duplicates(rows, small_copies(rows, lambda row: pictures[row]))
    assert (copies.pairs, copies.of_one_kind) == ([], 0)


def test_an_audit_of_good_pictures_does_without_torchvision():
    import subprocess
    import sys

    code = "import sys, finetune.data.audit, finetune.report.audit_page; print('torchvision' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
