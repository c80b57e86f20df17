"""Image files to check an export on: the run's own validation images, images given, or made-up ones."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.registry import Source
from finetune.inference.evaluate import class_positions


@dataclass(frozen=True, kw_only=True)
class CheckImages:
    """Files to compare on, and files to calibrate on that are not among them where there are enough.

    Args:
        files: To compare on.
        told: Where they come from.
        targets: Position of the true class for each, or None where it is not known.
        calibration: To take the ranges of activations from.
        reading: ``max_pixels`` and ``high_depth`` by which the run reads files; empty for the defaults.
    """

    files: list[str]
    told: str
    targets: list[int] | None = None
    calibration: list[str] = field(default_factory=list)
    reading: dict[str, Any] = field(default_factory=dict)


def images_of_source(
    source: Source, *, split: str, classes: Sequence[str], count: int, calibration: int, folder: Path
) -> CheckImages | None:
    """Images of a split, spread over it; images that are no files are written as such. None where the split is empty.

    Args:
        source: The data.
        split: ``val``, for instance.
        classes: Of the model.
        count: How many to compare on, at most.
        calibration: How many to calibrate on, at most.
        folder: Where files may be written.
    """
    rows = source.index.rows(split)
    if not len(rows):
        return None
    positions = class_positions(classes, source.index.classes)
    wanted = min(len(rows), count + calibration)
    rows = rows[np.linspace(0, len(rows) - 1, wanted).astype(np.int64)]
    # every second for calibration, as far as needed; a small split serves twice
    for_calibration = rows[1::2][:calibration] if len(rows) >= 2 * calibration else rows[:calibration]
    compared = rows[::2][:count] if calibration and len(rows) >= 2 * calibration else rows[:count]
    return CheckImages(
        files=[_file(source, int(row), folder) for row in compared],
        told=f"{len(compared)} of the run's {split} images",
        # of several labels an image there is no one class to be right about
        targets=[int(positions[source.index.targets[row]]) for row in compared]
        if source.index.targets.ndim == 1
        else None,
        calibration=[_file(source, int(row), folder) for row in for_calibration],
    )


def _file(source: Source, row: int, folder: Path) -> str:
    path = source.index.path(row)
    if os.path.isfile(path):
        return path
    written = folder / f"{row:06}.png"
    if not written.exists():
        image_CHW = source.read(row).numpy()
        Image.fromarray(image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)).save(written)
    return str(written)


def made_up_images(folder: Path, *, channels: int, count: int) -> CheckImages:
    """Smooth seeded noise of several sizes and shapes, as PNG files."""
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(48, 400, 2))
        coarse = random.integers(0, 256, (8, 8) if channels == 1 else (8, 8, 3), dtype=np.uint8)
        path = folder / f"made-up-{number:04}.png"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        files.append(str(path))
    return CheckImages(files=files, told=f"{count} made-up images", calibration=files)
