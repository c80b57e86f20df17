import numpy as np
import pytest

from finetune.data.class_list import arrange_classes
from finetune.data.index import Index
from finetune.data.path_table import path_table
from finetune.errors import UserError


def index_of(classes, targets):
    count = len(targets)
    return Index(
        classes=classes,
        root="",
        paths=path_table(map(str, range(count))),
        targets=np.array(targets, np.int64 if np.ndim(targets) == 1 else np.uint8),
        splits=np.zeros(count, np.int8),
        content=np.zeros((count, 2), np.uint64),
    )


def test_earlier_classes_come_first_in_their_order_and_renamed_ones_are_merged():
    index = index_of(["ant", "pup", "tabby", "tom"], [0, 1, 2, 3, 0])
    arrange_classes(
        index, first=["owl", "cat", "dog"], rename={"tabby": "cat", "tom": "cat", "pup": "dog", "hen": "egg"}
    )
    assert index.classes == ("owl", "cat", "dog", "ant")
    assert index.targets.tolist() == [3, 2, 1, 1, 3]
    assert index.notes == ("No image of these classes of the earlier model: owl.",)


def test_several_labels_are_refused():
    with pytest.raises(UserError, match=r"data\.rename: takes data of one label"):
        arrange_classes(index_of(["a", "b"], [[0, 1], [1, 0]]), rename={"a": "c"})
