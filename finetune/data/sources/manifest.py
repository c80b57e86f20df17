"""``data=manifest``: a table of image files, CSV, TSV or Parquet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.sources.kind import SourceKind
from finetune.data.table_file import TABLES
from finetune.errors import UserError
from finetune.split_settings import SplitSettings

if TYPE_CHECKING:
    from finetune.data.decode import DecodeOptions
    from finetune.data.image_source import FileSource
    from finetune.data.listing import Use


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
    decode_options: "DecodeOptions | None" = None,
    on_unreadable: str = "error",
    use: "Use" = "train",
) -> "FileSource":
    """Build a source from a manifest.

    The first arguments are those of :func:`finetune.data.manifest.read_manifest` and of its columns, the others those of
    :func:`finetune.data.sources.folder.folder_source`.

    Raises:
        UserError: The table cannot be read, or both a column and a pattern are given for the groups.
    """
    if group_column and group_pattern:
        raise UserError(
            f"data.group_column={group_column!r}, data.group_pattern={group_pattern!r}: only one of them can name the groups. "
            "Leave one out."
        )
    from finetune.data.image_source import files_source
    from finetune.data.joined_labels import joined_classes_note
    from finetune.data.listing import grouped_by_path
    from finetune.data.manifest import ManifestColumns, read_manifest

    columns = ManifestColumns(
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        label_separator=label_separator,
        label_columns=label_columns,
        group_column=group_column,
    )
    listing = read_manifest(path, root=root, columns=columns, use=use)
    source = files_source(
        grouped_by_path(listing, group_pattern), split=split, decode_options=decode_options, on_unreadable=on_unreadable
    )
    one_label = label_separator is None and not label_columns
    if use == "train" and one_label and (note := joined_classes_note(source.index.classes)):
        source.index.notes += (note,)
    return source


def _check(*, path: str, **_: Any) -> None:
    from finetune.data.manifest import check_manifest

    check_manifest(path)


_COLUMNS = ("path_column", "label_column", "split_column", "label_separator", "label_columns")
_GROUPS = ("group_column", "group_pattern")

MANIFEST = SourceKind(
    builder=lambda: manifest_source,
    specific=("path", "root", *_COLUMNS, *_GROUPS),
    needs={"path": "FILE, a CSV, TSV or Parquet table"},
    place="path",
    recognises=lambda path: path.suffix in TABLES and not path.is_dir(),
    decodes=True,
    bands=True,
    check=_check,
)
