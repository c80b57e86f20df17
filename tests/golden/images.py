"""Data of the cases: a colour folder, a grey folder, a folder with splits, a table of several labels, odd files."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.odd_images import odd_images
from tests.export.odd_files import write_files

CLASSES = {"1 cat": (120, 60, 60), "2 dog": (60, 120, 60), "10 owl": (60, 60, 120)}
LABELS = ("red", "green", "blue")


def write_all(work: Path) -> None:
    """Write all of it below a folder that is there."""
    _classes(work / "pets", count=14, grey=False, seed=0)
    _classes(work / "grey", count=12, grey=True, seed=10)
    for number, (split, count) in enumerate({"train": 8, "val": 4, "test": 4}.items()):
        _classes(work / "split" / split, count=count, grey=False, seed=20 + 3 * number)
    _flawed(work / "flawed")
    _several_labels(work / "labels")
    (work / "files").mkdir()
    write_files(work / "files", 22)
    (work / "odd").mkdir()
    for odd in odd_images():
        (work / "odd" / odd.name).write_bytes(odd.data)


def _classes(root: Path, *, count: int, grey: bool, seed: int) -> None:
    for number, (name, hue) in enumerate(CLASSES.items()):
        folder = root / name
        folder.mkdir(parents=True)
        random = np.random.default_rng(seed + number)
        for image in range(count):
            size = (24 + image % 5, 30 - image % 4)
            pixels = random.normal(60 + 40 * number, 30, size) if grey else random.normal(hue, 30, (*size, 3))
            kind = "jpg" if image % 3 == 2 else "png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{image}.{kind}")


def _flawed(root: Path) -> None:
    """Write classes with copies, a copy under another label, a damaged file, a constant image and an unequal class."""
    _classes(root, count=9, grey=False, seed=40)
    (root / "1 cat/copy.png").write_bytes((root / "1 cat/0.png").read_bytes())
    (root / "2 dog/cat.png").write_bytes((root / "1 cat/1.png").read_bytes())
    (root / "2 dog/damaged.png").write_bytes((root / "2 dog/1.png").read_bytes()[:200])
    Image.fromarray(np.full((24, 24, 3), 7, np.uint8)).save(root / "10 owl/constant.png")
    for number in range(3, 9):
        next(iter((root / "10 owl").glob(f"{number}.*"))).unlink()


def _several_labels(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(36):
        shown = [number >> bit & 1 for bit in range(3)]
        pixels = random.integers(0, 100, (24, 24, 3)) + 150 * np.array(shown)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", "|".join(name for name, yes in zip(LABELS, shown, strict=True) if yes)))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
