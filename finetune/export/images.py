"""Image files to check an export on: the run's own validation images, images the user gives, or synthetic ones."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.decode import DecodeOptions
from finetune.data.image_source import Source
from finetune.inference.evaluate import class_positions


@dataclass(frozen=True, kw_only=True)
class CheckImages:
    """Files to compare on, and files to calibrate on; the two sets are disjoint if there are enough images.

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
    total = min(len(rows), count + calibration)
    rows = rows[np.linspace(0, len(rows) - 1, total).astype(np.int64)]
    # every second image calibrates, as far as needed; a small split is used for both
    for_calibration = rows[1::2][:calibration] if len(rows) >= 2 * calibration else rows[:calibration]
    compared = rows[::2][:count] if calibration and len(rows) >= 2 * calibration else rows[:count]
    return CheckImages(
        files=[_file(source, int(row), folder) for row in compared],
        origin=f"{len(compared)} of the run's {split} images",
        targets=_targets(source.index.targets[compared], positions, len(classes)),
        calibration=[_file(source, int(row), folder) for row in for_calibration],
    )


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
