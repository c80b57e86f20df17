"""``data=folder``: ``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.sources.kind import SourceKind
from finetune.split_settings import SplitSettings

if TYPE_CHECKING:
    from finetune.data.decode import DecodeOptions
    from finetune.data.image_source import FileSource
    from finetune.data.listing import Listing, Use


def folder_source(
    *,
    root: str | Sequence[str],
    layout: str = "auto",
    group_pattern: str | None = None,
    split: SplitSettings = SplitSettings(),
    decode_options: "DecodeOptions | None" = None,
    on_unreadable: str = "error",
    use: "Use" = "train",
    listing: "Listing | None" = None,
) -> "FileSource":
    """Build a source from image folders, ``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``; make missing splits.

    Args:
        root: Path of the folder, or of several folders that form one data set.
        layout: How the folders are read, ``auto``, ``classes`` or ``splits``.
        group_pattern: Regular expression whose match in a relative path names the group of an image; generated splits never
            divide a group. None for no groups.
        split: Rule for the splits that the folder lacks.
        decode_options: How the files become pixels; images of more than ``max_pixels`` count as unreadable. None for the
            defaults.
        on_unreadable: Treatment of unreadable files, ``error`` or ``skip``.
        use: Purpose of the data set.
        listing: Listing of the folders, if known, so that they are not listed again.

    Raises:
        UserError: See :func:`finetune.data.image_folder.list_training_folders` and :mod:`finetune.data.assign_splits`.
    """
    from finetune.data.image_folder import list_folders
    from finetune.data.image_source import files_source
    from finetune.data.listing import grouped_by_path

    listing = list_folders(root, layout=layout, use=use) if listing is None else listing
    return files_source(
        grouped_by_path(listing, group_pattern), split=split, decode_options=decode_options, on_unreadable=on_unreadable
    )


def _check(*, root: str | Sequence[str], layout: str = "auto", use: "Use", **_: Any) -> "Listing":
    from finetune.data.image_folder import list_folders

    return list_folders(root, layout=layout, use=use)


def _left_out(*, root: str | Sequence[str], **_: Any) -> Sequence[str]:
    from finetune.data.image_folder import pictures_left_out

    return pictures_left_out(root)


FOLDER = SourceKind(
    builder=lambda: folder_source,
    specific=("root", "layout", "group_pattern"),
    needs={"root": "DIR, the folder that holds your images"},
    place="root",
    decodes=True,
    bands=True,
    check=_check,
    left_out=_left_out,
)
