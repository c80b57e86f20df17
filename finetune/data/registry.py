"""The registry of data sources: one builder for each ``data.source``."""

from collections.abc import Callable, Sequence

import numpy as np

from finetune.data.assign_splits import SplitPlan
from finetune.data.huggingface_datasets import huggingface_source
from finetune.data.image_file import MAX_PIXELS
from finetune.data.image_folder import scan_folders
from finetune.data.image_source import ArraySource, FileSource, arrays_source, files_source
from finetune.data.image_source import Source as Source  # the name under which other rooms know it
from finetune.data.manifest import read_manifest
from finetune.data.torchvision_datasets import torchvision_source
from finetune.pretraining.formula_source import fractals_source


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
    """Build a source from image folders, ``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``; make missing splits.

    Args:
        root: Path of the folder, or of several folders that form one data set.
        channels: Number of channels, 1 or 3.
        seed: Seed of the splits.
        val_fraction: Share of each class that goes to validation, where the folder has no such split.
        test_fraction: Share of each class that goes to the test split, where the folder has no such split.
        folds: Number of folds for cross-validation; None for a single split.
        fold: Fold used for validation, counted from 0.
        limit_per_class: Most training images per class; None for no limit.
        on_unreadable: Treatment of unreadable files, ``error`` or ``skip``.
        max_pixels: Largest number of pixels; larger images count as unreadable.
        high_depth: Rule that turns more than 8 bits into 8, see :mod:`finetune.data.color`.

    Raises:
        UserError: See :func:`finetune.data.image_folder.scan_folders` and :mod:`finetune.data.assign_splits`.
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
    """Build a source from a manifest; the first arguments are those of :func:`finetune.data.manifest.read_manifest`."""
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
    """Build a source from scikit-learn's 1,797 scanned digits: 8 x 8 pixels, one channel, 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # imported here, because it takes a second that other sources need not pay

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
    "torchvision": torchvision_source,
    "huggingface": huggingface_source,
}
