"""``data=huggingface``: a data set on disk, of the Hugging Face library; see :mod:`finetune.data.huggingface_datasets`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune.data.sources.kind import SourceKind

if TYPE_CHECKING:
    from finetune.data.image_source import Source


def _builder() -> "Callable[..., Source]":
    from finetune.data.huggingface_datasets import huggingface_source

    return huggingface_source


HUGGINGFACE = SourceKind(
    builder=_builder,
    specific=("path", "image_column", "label_column", "group_column"),
    needs={"path": "DIR, a data set on disk"},
    place="path",
    recognises=lambda path: any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")),
    decodes=True,
)
