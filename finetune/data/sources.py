"""Where samples come from: an index, and a way to read one of its rows."""

import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.content import content_of_arrays, hash_paths
from finetune.data.decode import decode_image
from finetune.data.folder import Scan, scan_folder
from finetune.data.index import Index
from finetune.data.path_table import path_table
from finetune.data.splits import TRAIN, make_splits


class Source(Protocol):
    """A data set: the table of its samples, and their pixels. Picklable, so that workers may be spawned."""

    index: Index
    channels: int

    def read(self, row: int, *, at_least: int | None = None) -> torch.Tensor:
        """The image of one row.

        Args:
            row: Row of the index.
            at_least: The shorter side may be read smaller than it is, but to no fewer pixels than this.

        Returns:
            uint8 (channels, H, W).

        Raises:
            UnreadableImage: The file is damaged or gone.
        """
        ...


class FileSource:
    """Samples that are image files."""

    def __init__(self, *, index: Index, channels: int) -> None:
        self.index = index
        self.channels = channels

    def read(self, row: int, *, at_least: int | None = None) -> torch.Tensor:
        """Decode the file of one row."""
        return decode_image(self.index.path(row), channels=self.channels, at_least=at_least)


class ArraySource:
    """Samples held in memory.

    Args:
        index: The table of samples.
        images: uint8 (N, H, W), grey.
        channels: 1, or 3 for three equal channels.
    """

    # nothing to decode: loader processes would cost more than they save
    in_memory = True

    def __init__(self, *, index: Index, images: npt.NDArray[np.uint8], channels: int) -> None:
        self.index = index
        self.images = images
        self.channels = channels

    def read(self, row: int, *, at_least: int | None = None) -> torch.Tensor:
        """A copy of one row's image."""
        return torch.from_numpy(self.images[row].copy()).expand(self.channels, -1, -1).contiguous()


def folder_source(
    *,
    root: str,
    channels: int = 3,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
) -> FileSource:
    """A folder of images, ``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``; missing splits are made.

    Raises:
        UserError: See :func:`finetune.data.folder.scan_folder`.
    """
    scan = scan_folder(root)
    content, _ = hash_paths(scan.root, scan.paths)
    splits = _complete(scan, content, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    index = Index(
        classes=scan.classes,
        root=scan.root,
        paths=scan.paths,
        targets=scan.targets,
        splits=splits,
        content=content,
    )
    return FileSource(index=index, channels=channels)


def _complete(
    scan: Scan, content: npt.NDArray[np.uint64], *, seed: int, val_fraction: float, test_fraction: float
) -> npt.NDArray[np.int8]:
    """The folder's own splits, and the missing ones made from what would be trained on."""
    splits = np.maximum(scan.splits, TRAIN)
    rows = np.flatnonzero(splits == TRAIN)
    splits[rows] = make_splits(
        targets=scan.targets[rows],
        content=content[rows],
        seed=seed,
        val_fraction=0.0 if "val" in scan.given else val_fraction,
        test_fraction=0.0 if "test" in scan.given else test_fraction,
    )
    return splits


def digits_source(
    *,
    channels: int = 1,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
) -> ArraySource:
    """The 1,797 scanned digits that come with scikit-learn, 8 x 8 pixels, one channel; 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # imported here: a second that other sources need not pay

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    targets = digits.target.astype(np.int64)
    content = content_of_arrays(list(images))
    index = Index(
        classes=[str(name) for name in digits.target_names],
        root="",
        paths=path_table(os.path.join("digits", f"{row:04}") for row in range(len(images))),
        targets=targets,
        splits=make_splits(
            targets=targets, content=content, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction
        ),
        content=content,
    )
    return ArraySource(index=index, images=images, channels=channels)


SOURCES: dict[str, Callable[..., Source]] = {
    "folder": folder_source,
    "digits": digits_source,
}
