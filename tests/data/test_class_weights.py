import numpy as np
import pytest

from finetune.data.class_weights import balanced_sample_weights, class_weights
from finetune.data.index import Index
from finetune.data.path_table import path_table


def index(targets, splits=None):
    targets = np.array(targets)
    count = len(targets)
    return Index(
        classes=["a", "b", "c"],
        root="",
        paths=path_table(str(row) for row in range(count)),
        targets=targets,
        splits=np.zeros(count, np.int8) if splits is None else np.array(splits, np.int8),
        content=np.zeros((count, 2), np.uint64),
    )


def test_class_weights_make_every_class_count_the_same():
    counts = np.array([900, 6, 94])
    weights = class_weights(counts)
    assert weights * counts == pytest.approx([1000 / 3] * 3)


def test_a_class_without_samples_weighs_nothing():
    assert class_weights([4, 0, 4]).tolist() == [1.0, 0.0, 1.0]


def test_drawing_by_sample_weights_shows_every_class_equally_often():
    targets = [0] * 90 + [1] * 9 + [2]
    weights = balanced_sample_weights(index(targets))
    shares = [weights[np.array(targets) == target].sum() for target in range(3)]
    assert shares == pytest.approx([100 / 3] * 3)


def test_only_training_samples_are_counted():
    weights = balanced_sample_weights(index([0, 0, 1, 2, 0], splits=[0, 0, 0, 0, 1]))
    assert weights[0] * 2 == pytest.approx(weights[2])


def test_several_labels_weigh_as_the_rarest():
    weights = balanced_sample_weights(index(np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0]], np.uint8)))
    assert weights[0] == weights[2] > weights[1] == weights[3]
