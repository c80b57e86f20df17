"""The registry of data sources: a builder for each ``data.source``, and the settings that it takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from finetune.data.decode import DecodeOptions
from finetune.data.huggingface_datasets import huggingface_source
from finetune.data.image_folder import list_training_folders
from finetune.data.image_source import ArraySource, FileSource, arrays_source, files_source
from finetune.data.image_source import Source as Source  # re-exported: other packages import it from here
from finetune.data.listing import grouped_by_path
from finetune.data.manifest import read_manifest
from finetune.data.torchvision_datasets import torchvision_source
from finetune.errors import UserError
from finetune.pretraining.formula_source import fractals_source
from finetune.split_settings import SplitSettings

SPLIT_KEYS = tuple(field.name for field in fields(SplitSettings) if field.name != "seed")
FILE_KEYS = ("on_unreadable", "max_pixels", "high_depth")


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """A value of ``data.source``.

    Args:
        build: Builder of the source. It takes the settings of ``own``, ``split``, and for images that are decoded
            ``decode`` and ``on_unreadable``, else ``channels``.
        own: Settings under ``data`` that this source alone gives a meaning.
        splits: Settings of the splits that it takes.
        decodes: Whether its images are decoded from files; it then takes ``FILE_KEYS``.
    """

    build: Callable[..., Source]
    own: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLIT_KEYS
    decodes: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        """Return all settings under ``data`` that this source takes."""
        return (*self.own, *self.splits, *(FILE_KEYS if self.decodes else ()))


def folder_source(
    *,
    root: str | Sequence[str],
    group_pattern: str | None = None,
    split: SplitSettings = SplitSettings(),
    decode: DecodeOptions = DecodeOptions(),
    on_unreadable: str = "error",
) -> FileSource:
    """Build a source from image folders, ``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``; make missing splits.

    Args:
        root: Path of the folder, or of several folders that form one data set.
        group_pattern: Regular expression whose match in a relative path names the group of an image, which no made split
            parts; None for no groups.
        split: Rule for the splits that the folder lacks.
        decode: How the files become pixels; images of more than ``max_pixels`` count as unreadable.
        on_unreadable: Treatment of unreadable files, ``error`` or ``skip``.

    Raises:
        UserError: See :func:`finetune.data.image_folder.list_training_folders` and :mod:`finetune.data.assign_splits`.
    """
    listing = grouped_by_path(list_training_folders(root), group_pattern)
    return files_source(listing, split=split, decode=decode, on_unreadable=on_unreadable)


def manifest_source(
    *,
    path: str,
    root: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
    group_column: str | None = None,
    group_pattern: str | None = None,
    split: SplitSettings = SplitSettings(),
    decode: DecodeOptions = DecodeOptions(),
    on_unreadable: str = "error",
) -> FileSource:
    """Build a source from a manifest.

    The first arguments are those of :func:`finetune.data.manifest.read_manifest`, the last four those of
    :func:`folder_source`.

    Raises:
        UserError: The table cannot be read, or both a column and a pattern are given for the groups.
    """
    if group_column and group_pattern:
        raise UserError(
            f"data.group_column={group_column!r}, data.group_pattern={group_pattern!r}: only one of them can name the groups. "
            "Leave one out."
        )
    listing = read_manifest(
        path,
        root=root,
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        label_separator=label_separator,
        label_columns=label_columns,
        group_column=group_column,
    )
    return files_source(
        grouped_by_path(listing, group_pattern), split=split, decode=decode, on_unreadable=on_unreadable
    )


def digits_source(*, channels: int = 1, split: SplitSettings = SplitSettings()) -> ArraySource:
    """Build a source from scikit-learn's 1,797 scanned digits: 8 x 8 pixels, one channel, 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits  # imported here, because it takes a second that other sources need not pay

    digits = load_digits()
    return arrays_source(
        images=np.rint(digits.images * (255 / 16)).astype(np.uint8),
        targets=digits.target.astype(np.int64),
        classes=[str(name) for name in digits.target_names],
        name="digits",
        channels=channels,
        split=split,
    )


_COLUMNS = (
    "path_column",
    "label_column",
    "split_column",
    "label_separator",
    "label_columns",
    "group_column",
    "group_pattern",
)

SOURCES: dict[str, SourceKind] = {
    "folder": SourceKind(build=folder_source, own=("root", "group_pattern"), decodes=True),
    "manifest": SourceKind(build=manifest_source, own=("path", "root", *_COLUMNS), decodes=True),
    "digits": SourceKind(build=digits_source),
    "fractals": SourceKind(
        build=fractals_source,
        own=("recipe", "classes", "images_per_class", "image_size"),
        splits=("val_fraction", "test_fraction"),
    ),
    "torchvision": SourceKind(build=torchvision_source, own=("name", "root"), decodes=True),
    "huggingface": SourceKind(
        build=huggingface_source, own=("path", "image_column", "label_column", "group_column"), decodes=True
    ),
}
