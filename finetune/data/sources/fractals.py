"""``data=fractals``: images drawn from formulas, without files; see :mod:`finetune.pretraining.formula_source`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune.data.sources.kind import SourceKind

if TYPE_CHECKING:
    from finetune.data.image_source import Source


def _builder() -> "Callable[..., Source]":
    from finetune.pretraining.formula_source import fractals_source

    return fractals_source


FRACTALS = SourceKind(
    builder=_builder,
    specific=("recipe", "classes", "images_per_class", "image_size"),
    splits=("val_fraction", "test_fraction"),
    classes=(),
)
