import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from finetune.data.audit import audit
from finetune.data.borders import border_of
from finetune.data.sources.folder import folder_source


def scene(number, size=(96, 72)):
    """A smooth picture with detail up to its edges."""
    cells = np.random.default_rng(number).integers(30, 226, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def grey(image, quality=None):
    if quality is not None:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        image = Image.open(file)
    return np.asarray(image.convert("L"))


BORDERED = {
    "black frame": lambda image: ImageOps.expand(image, 3, "black"),
    "thin white frame": lambda image: ImageOps.expand(image, 2, "white"),
    "letterbox": lambda image: ImageOps.expand(image, (0, 8), "black"),
    "pillarbox": lambda image: ImageOps.expand(image, (9, 0), "black"),
    "bar below": lambda image: ImageOps.expand(image, (0, 0, 0, 6), "white"),
}


@pytest.mark.parametrize("name", BORDERED)
def test_a_border_has_a_number_of_its_own_that_recompression_keeps(name):
    numbers = {border_of(grey(BORDERED[name](scene(number)), quality)) for number in range(9) for quality in (None, 75)}
    assert len(numbers) == 1
    others = {border_of(grey(change(scene(0)))) for other, change in BORDERED.items() if other != name}
    assert numbers.isdisjoint({*others, 0})


def test_pictures_without_a_straight_inner_edge_have_no_border():
    assert {border_of(grey(scene(number))) for number in range(20)} == {0}
    things = Image.new("RGB", (80, 80), "white")
    things.paste("navy", (37, 0, 43, 80))  # a thing that touches two sides
    assert border_of(grey(things)) == 0
    y, x = np.mgrid[-1:1:80j, -1:1:80j]
    assert border_of(np.where(x**2 + y**2 < 0.8, 40, 255).astype(np.uint8)) == 0
    assert border_of(np.full((40, 40), 7, np.uint8)) == 0


@pytest.mark.parametrize("name", ["black frame", "letterbox", "thin white frame"])
def test_a_class_told_by_its_border_alone_is_a_finding_of_the_audit(name, tmp_path):
    for number in range(36):
        folder = tmp_path / "abc"[number % 3]
        folder.mkdir(exist_ok=True)
        image = scene(number, (90 + number, 70 + number))
        (BORDERED[name](image) if number % 3 == 1 else image).save(folder / f"{number}.jpg", quality=85)
    (finding,) = [
        one for one in audit(folder_source(root=str(tmp_path))).findings if one.kind == "class identifiable by border"
    ]
    assert (finding.severity, finding.files) == ("warning", (("b",),))
    assert "1 of 3 classes" in finding.text
