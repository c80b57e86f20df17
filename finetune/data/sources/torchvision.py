"""``data=torchvision``: a data set of torchvision by its name; see :mod:`finetune.data.torchvision_datasets`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune.data.sources.kind import SourceKind

if TYPE_CHECKING:
    from finetune.data.image_source import Source


def _builder() -> "Callable[..., Source]":
    from finetune.data.torchvision_datasets import torchvision_source

    return torchvision_source


TORCHVISION = SourceKind(
    builder=_builder,
    specific=("name", "root"),
    needs={"name": "NAME, such as OxfordIIITPet"},
    # the folder that holds the data set, or that it is downloaded to
    defaults={"root": "data"},
    decodes=True,
    downloads=True,
)
