"""Image files to check an export on: the run's own validation images, images the user gives, or synthetic ones."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.decode import DecodeOptions
from finetune.data.image_source import Source
from finetune.inference.evaluate import class_positions


@dataclass(frozen=True, kw_only=True)
class CheckImages:
    """Files to compare on, and files to calibrate on; disjoint if there are enough images, as ``origin`` says.

    Args:
        files: Files to compare on.
        origin: Where the files come from, for the report.
        targets: Index of the true class of each file, or zeros and ones for several labels; None if not known.
        calibration: Files that determine the ranges of the activations.
        decode_options: How the run decodes files; None for the defaults.
    """

    files: list[str]
    origin: str
    targets: list[int] | list[list[int]] | None = None
    calibration: list[str] = field(default_factory=list)
    decode_options: DecodeOptions | None = None


def images_of_source(
    source: Source, *, split: str, classes: Sequence[str], count: int, calibration: int, folder: Path
) -> CheckImages | None:
    """Return images spread evenly over a split, or None if the split is empty; images without a file are written as PNG.

    Args:
        source: Images and labels.
        split: Name of the split, such as ``val``.
        classes: Class names of the model.
        count: Largest number of images to compare on.
        calibration: Largest number of images to calibrate on.
        folder: Folder where PNG files may be written.
    """
    rows = source.index.rows(split)
    if not len(rows):
        return None
    positions = class_positions(classes, source.index.classes)
    chosen = _choose(len(rows), count=count, calibration=calibration)
    compared = rows[chosen.compared]
    return CheckImages(
        files=[_file(source, int(row), folder) for row in compared],
        origin=f"{len(compared)} of the run's {split} images{chosen.words}",
        targets=_targets(source.index.targets[compared], positions, len(classes)),
        calibration=[_file(source, int(row), folder) for row in rows[chosen.calibrating]],
    )


def images_of_files(files: Sequence[str], *, count: int, calibration: int) -> CheckImages:
    """Return images spread evenly over files that the user gave.

    Args:
        files: At least one file.
        count: Largest number of images to compare on.
        calibration: Largest number of images to calibrate on.
    """
    # a file that is given twice must not be on both sides
    files = list(dict.fromkeys(files))
    chosen = _choose(len(files), count=count, calibration=calibration)
    return CheckImages(
        files=[files[number] for number in chosen.compared],
        origin=f"--images{chosen.words}",
        calibration=[files[number] for number in chosen.calibrating],
    )


class _Chosen(NamedTuple):
    """The positions of the images to compare on and to calibrate on, and how the report says whether they are the same."""

    compared: npt.NDArray[np.int64]
    calibrating: npt.NDArray[np.int64]
    words: str


def _choose(total: int, *, count: int, calibration: int) -> _Chosen:
    """Spread both over a list that may lie class by class; fewer than twice those that calibrate serve for both."""
    calibrating = _spread(total, calibration)
    if total < 2 * calibration:
        return _Chosen(_spread(total, count), calibrating, ", on which it was calibrated too")
    others = np.setdiff1d(np.arange(total), calibrating)
    words = ", others than it was calibrated on" if calibration else ""
    return _Chosen(others[_spread(len(others), count)], calibrating, words)


def _spread(total: int, count: int) -> npt.NDArray[np.int64]:
    """Return up to this many positions, evenly from the first to the last."""
    return np.linspace(0, total - 1, min(total, count)).astype(np.int64)


def _targets(
    targets: npt.NDArray[np.integer], positions: npt.NDArray[np.int64], classes: int
) -> list[int] | list[list[int]]:
    """Return the targets of a source by the classes of the model: class numbers, or zeros and ones for several labels."""
    if targets.ndim == 1:
        return [int(number) for number in positions[targets]]
    shown = np.zeros((len(targets), classes), np.int64)
    shown[:, positions] = targets > 0
    return [list(map(int, row)) for row in shown]


def _file(source: Source, row: int, folder: Path) -> str:
    path = source.index.path(row)
    if os.path.isfile(path):
        return path
    pixels_HWC = source.read(row).numpy().transpose(1, 2, 0)
    return _written(folder / f"{row:06}", pixels_HWC)


def _written(stem: Path, pixels_HWC: npt.NDArray[np.uint8]) -> str:
    """Write an image as PNG, or of other channels than 1 and 3 as an array; return its path."""
    channels = pixels_HWC.shape[2]
    path = stem.with_suffix(".png" if channels in (1, 3) else ".npy")
    if not path.exists():
        if channels in (1, 3):
            Image.fromarray(pixels_HWC[..., 0] if channels == 1 else pixels_HWC).save(path)
        else:
            np.save(path, pixels_HWC)
    return str(path)


def synthetic_images(folder: Path, *, channels: int, count: int) -> CheckImages:
    """Write smooth seeded noise of several sizes and shapes as files."""
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(48, 400, 2))
        coarse = random.integers(0, 256, (8, 8, channels), dtype=np.uint8)
        bands = [Image.fromarray(coarse[..., band]) for band in range(channels)]
        smooth = [np.asarray(band.resize((width, height), Image.Resampling.BICUBIC)) for band in bands]
        files.append(_written(folder / f"synthetic-{number:04}", np.stack(smooth, axis=-1)))
    return CheckImages(files=files, origin=f"{count} synthetic images", calibration=files)
