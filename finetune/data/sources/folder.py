"""``data=folder``: ``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.sources.kind import SourceKind
from finetune.split_settings import SplitSettings

if TYPE_CHECKING:
    from finetune.data.decode import DecodeOptions
    from finetune.data.image_source import FileSource


def folder_source(
    *,
    root: str | Sequence[str],
    group_pattern: str | None = None,
    split: SplitSettings = SplitSettings(),
    decode: "DecodeOptions | None" = None,
    on_unreadable: str = "error",
) -> "FileSource":
    """Build a source from image folders, ``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``; make missing splits.

    Args:
        root: Path of the folder, or of several folders that form one data set.
        group_pattern: Regular expression whose match in a relative path names the group of an image, which no made split
            parts; None for no groups.
        split: Rule for the splits that the folder lacks.
        decode: How the files become pixels; images of more than ``max_pixels`` count as unreadable. None for the defaults.
        on_unreadable: Treatment of unreadable files, ``error`` or ``skip``.

    Raises:
        UserError: See :func:`finetune.data.image_folder.list_training_folders` and :mod:`finetune.data.assign_splits`.
    """
    from finetune.data.image_folder import list_training_folders
    from finetune.data.image_source import files_source
    from finetune.data.listing import grouped_by_path

    listing = grouped_by_path(list_training_folders(root), group_pattern)
    return files_source(listing, split=split, decode=decode, on_unreadable=on_unreadable)


def _test_folder_source(
    *,
    root: str | Sequence[str],
    group_pattern: str | None = None,
    decode: "DecodeOptions",
    on_unreadable: str = "error",
) -> "FileSource":
    """Build a source from another folder, all of it test data unless it has split folders."""
    from finetune.data.image_folder import list_folders
    from finetune.data.image_source import evaluation_source

    return evaluation_source(list_folders(root), decode=decode, on_unreadable=on_unreadable)


def _check(*, root: str | Sequence[str], training: bool, **_: Any) -> None:
    from finetune.data.image_folder import list_folders, list_training_folders

    (list_training_folders if training else list_folders)(root)


def _left_out(*, root: str | Sequence[str], **_: Any) -> Sequence[str]:
    from finetune.data.image_folder import pictures_left_out

    return pictures_left_out(root)


FOLDER = SourceKind(
    builder=lambda: folder_source,
    own=("root", "group_pattern"),
    needs={"root": "DIR, the folder that holds your images"},
    place="root",
    decodes=True,
    check=_check,
    evaluation_builder=lambda: _test_folder_source,
    left_out=_left_out,
)
