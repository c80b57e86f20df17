"""The list of a data set's classes: some renamed or merged, those of an earlier model first."""

from collections.abc import Mapping, Sequence

import numpy as np

from finetune.data.index import Index
from finetune.errors import UserError, shortened


def arrange_classes(index: Index, *, first: Sequence[str] = (), rename: Mapping[str, str] | None = None) -> None:
    """Rename the classes of an index, merge those of one name, and put some first; the others keep their order.

    Args:
        index: Index, which is changed.
        first: Classes that come first, in this order, also those of which the data has no image; a note says which these are.
        rename: New names of classes by their old ones; a name that the data does not have is of no concern.

    Raises:
        UserError: The data has several labels per image.
    """
    if not first and not rename:
        return
    if index.multi_label:
        given = "data.old_classes" if first else "data.rename"
        raise UserError(f"{given}: takes data of one label per image. This data has several.")
    named = [(rename or {}).get(name, name) for name in index.classes]
    classes = list(dict.fromkeys([*first, *named]))
    index.targets = np.array([classes.index(name) for name in named], np.int64)[index.targets]
    index.classes = tuple(classes)
    if missing := [name for name in first if name not in named]:
        index.notes += (f"No image of these classes of the earlier model: {shortened(missing)}.",)
