"""Where samples come from: an index, and a way to read one of its rows."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.arrange import SplitPlan, arrange, leave_out_unreadable
from finetune.data.decode import MAX_PIXELS, decode_image
from finetune.data.facts import Facts, facts_of_arrays
from finetune.data.facts_cache import cached_facts
from finetune.data.folder import scan_folders
from finetune.data.formula_source import fractals_source
from finetune.data.index import Index
from finetune.data.listing import UNASSIGNED, Listing
from finetune.data.manifest import read_manifest
from finetune.data.path_table import path_table
from finetune.data.pixels import HIGH_DEPTHS, HighDepth
from finetune.errors import UserError, did_you_mean

# luma of ITU-R BT.601, as in finetune.data.pixels
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Source(Protocol):
    """A data set: the table of its samples, and their pixels. Picklable, so that workers may be spawned.

    ``in_memory`` says whether reading costs next to nothing; ``facts`` has a row for each row of the index.
    """

    index: Index
    channels: int
    in_memory: bool
    facts: Facts | None

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

    in_memory = False

    def __init__(
        self,
        *,
        index: Index,
        channels: int,
        facts: Facts | None = None,
        max_pixels: int = MAX_PIXELS,
        high_depth: HighDepth = "full",
    ) -> None:
        self.index = index
        self.channels = channels
        self.facts = facts
        self.max_pixels = max_pixels
        self.high_depth = high_depth

    def read(self, row: int, *, at_least: int | None = None) -> torch.Tensor:
        """Decode the file of one row."""
        return decode_image(
            self.index.path(row),
            channels=self.channels,
            at_least=at_least,
            max_pixels=self.max_pixels,
            high_depth=self.high_depth,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the facts: no worker process asks for them."""
        return self.__dict__ | {"facts": None}


class ArraySource:
    """Samples held in memory.

    Args:
        index: The table of samples.
        images: uint8 (M, H, W) or (M, H, W, 3).
        channels: 1 or 3; grey becomes three equal channels, colour its luma.
        rows: Position in ``images`` of each row of the index.
        facts: What the images are.
    """

    in_memory = True

    def __init__(
        self,
        *,
        index: Index,
        images: npt.NDArray[np.uint8],
        channels: int,
        rows: npt.NDArray[np.int64],
        facts: Facts | None = None,
    ) -> None:
        self.index = index
        self.images = images
        self.channels = channels
        self.rows = rows
        self.facts = facts

    def read(self, row: int, *, at_least: int | None = None) -> torch.Tensor:
        """A copy of one row's image."""
        image = self.images[self.rows[row]]
        if image.ndim == 3 and self.channels == 1:
            image = np.rint(image @ _LUMA).astype(np.uint8)
        pixels = torch.from_numpy(image.copy())
        return pixels.permute(2, 0, 1) if image.ndim == 3 else pixels.expand(self.channels, -1, -1).contiguous()


def folder_source(
    *,
    root: str | Sequence[str],
    channels: int = 3,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    folds: int | None = None,
    fold: int = 0,
    limit_per_class: int | None = None,
    on_unreadable: str = "error",
    max_pixels: int = MAX_PIXELS,
    high_depth: str = "full",
) -> FileSource:
    """A folder of images, ``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``, or several; missing splits are made.

    Args:
        root: The folder, or several that make one data set.
        channels: 1 or 3.
        seed: Seed of the splits.
        val_fraction: Share of each class for validation, where there is no such split.
        test_fraction: Share of each class for the test, likewise.
        folds: Number of folds for cross-validation.
        fold: The fold to validate on, from 0.
        limit_per_class: Train on at most this many images of each class.
        on_unreadable: ``error`` or ``skip``.
        max_pixels: Larger images count as unreadable.
        high_depth: How more than 8 bits become 8, see :mod:`finetune.data.pixels`.

    Raises:
        UserError: See :func:`finetune.data.folder.scan_folders` and :mod:`finetune.data.arrange`.
    """
    return files_source(
        scan_folders(root),
        plan=SplitPlan(
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            folds=folds,
            fold=fold,
            limit_per_class=limit_per_class,
        ),
        channels=channels,
        on_unreadable=on_unreadable,
        max_pixels=max_pixels,
        high_depth=high_depth,
    )


def manifest_source(
    *,
    path: str,
    root: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
    channels: int = 3,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    folds: int | None = None,
    fold: int = 0,
    limit_per_class: int | None = None,
    on_unreadable: str = "error",
    max_pixels: int = MAX_PIXELS,
    high_depth: str = "full",
) -> FileSource:
    """The images of a table; the first arguments are those of :func:`finetune.data.manifest.read_manifest`."""
    listing = read_manifest(
        path,
        root=root,
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        label_separator=label_separator,
        label_columns=label_columns,
    )
    return files_source(
        listing,
        plan=SplitPlan(
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            folds=folds,
            fold=fold,
            limit_per_class=limit_per_class,
        ),
        channels=channels,
        on_unreadable=on_unreadable,
        max_pixels=max_pixels,
        high_depth=high_depth,
    )


def files_source(
    listing: Listing, *, plan: SplitPlan, channels: int, on_unreadable: str, max_pixels: int, high_depth: str
) -> FileSource:
    """A source of listed files: opens each once (or asks the cache), leaves out the unreadable, makes the splits."""
    if high_depth not in HIGH_DEPTHS:
        raise UserError(
            f"data.high_depth={high_depth!r}: must be one of {', '.join(HIGH_DEPTHS)}."
            f"{did_you_mean(high_depth, HIGH_DEPTHS)}"
        )
    facts = cached_facts(listing.root, listing.paths, max_pixels=max_pixels)
    readable, skipped = leave_out_unreadable(listing, facts.unreadable(), on_unreadable=on_unreadable)
    if skipped:
        facts = facts.take(np.flatnonzero(facts.table["problem"] == 0))
    index, rows = arrange(readable, content=facts.content, plan=plan, skipped=skipped)
    return FileSource(
        index=index,
        channels=channels,
        facts=facts.take(rows),
        max_pixels=max_pixels,
        high_depth="stretch" if high_depth == "stretch" else "full",
    )


def arrays_source(
    *,
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    classes: Sequence[str],
    name: str,
    splits: npt.NDArray[np.int8] | None = None,
    given: Sequence[str] = (),
    channels: int,
    plan: SplitPlan,
) -> ArraySource:
    """A source of images in memory; sample 7 is called ``name/0007``."""
    width = len(str(len(images) - 1))
    listing = Listing(
        origin=f"data.source={name!r}",
        root="",
        classes=tuple(classes),
        paths=path_table(os.path.join(name, f"{row:0{width}}") for row in range(len(images))),
        targets=targets,
        splits=np.full(len(images), UNASSIGNED, np.int8) if splits is None else splits,
        given=tuple(given),
    )
    facts = facts_of_arrays(list(images))
    index, rows = arrange(listing, content=facts.content, plan=plan)
    return ArraySource(index=index, images=images, channels=channels, rows=rows, facts=facts.take(rows))


def digits_source(
    *,
    channels: int = 1,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    folds: int | None = None,
    fold: int = 0,
    limit_per_class: int | None = None,
) -> ArraySource:
    """The 1,797 scanned digits that come with scikit-learn, 8 x 8 pixels, one channel; 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # imported here: a second that other sources need not pay

    digits = load_digits()
    return arrays_source(
        images=np.rint(digits.images * (255 / 16)).astype(np.uint8),
        targets=digits.target.astype(np.int64),
        classes=[str(name) for name in digits.target_names],
        name="digits",
        channels=channels,
        plan=SplitPlan(
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            folds=folds,
            fold=fold,
            limit_per_class=limit_per_class,
        ),
    )


SOURCES: dict[str, Callable[..., Source]] = {
    "folder": folder_source,
    "manifest": manifest_source,
    "digits": digits_source,
    "fractals": fractals_source,
}
