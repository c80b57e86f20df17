"""Two small finished runs with a report: a single-label run with hostile class names, and a multi-label run."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import TINY, write_images
from tests.runs import train_tiny

# mark-up, mathematics, a spreadsheet formula, another script
NAMES = ("<img src=x onerror=alert(1)>", '$1$ & "2"', "=1+1", "猫")
WORDS = (*TINY, "report=true", "schedule.restore=last", "schedule.lr=0.01")


def one_label(folder: Path) -> Path:
    """Train a staged run whose stem stays frozen; the colours of the classes overlap, so that it makes mistakes."""
    for number, name in enumerate(NAMES):
        write_images(
            folder / "data" / name, count=24, hue=(90 + 9 * number, 90, 110 - 9 * number), seed=number, size=40
        )
    more = ["schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=2", "freeze=[stem]"]
    words = ["data=folder", f"data.root={folder / 'data'}", *WORDS, *more, "input.size=64", "data.test_fraction=0.3"]
    return train_tiny(words, folder / "run").run_dir


def several_labels(folder: Path) -> Path:
    """Train a run on images that each show none to three of three classes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    names = ("red", "green", NAMES[0])
    rows = []
    for number in range(60):
        shown = [number >> bit & 1 for bit in range(3)]
        pixels = random.integers(0, 160, (24, 24, 3)) + 90 * np.array(shown)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", "|".join(name for name, yes in zip(names, shown, strict=True) if yes)))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    words = ["data=manifest", f"data.path={folder / 'table.csv'}", "data.label_separator=|", *WORDS]
    words += ["schedule=frozen", "schedule.phases.0.epochs=2", "data.test_fraction=0.3"]
    return train_tiny(words, folder / "run").run_dir
