import numpy as np
import pytest

from finetune.data.index import Index, natural_order
from finetune.data.path_table import path_table


def index(**changes):
    values = {
        "classes": ["a", "b"],
        "root": "/data",
        "paths": path_table(["a/1.png", "a/2.png", "b/1.png"]),
        "targets": np.array([0, 0, 1]),
        "splits": np.array([0, 1, 2], np.int8),
        "content": np.arange(6, dtype=np.uint64).reshape(3, 2),
    }
    return Index(**values | changes)


def test_rows_paths_and_counts_agree():
    table = index()
    assert len(table) == 3
    assert [table.path(row) for row in range(3)] == ["/data/a/1.png", "/data/a/2.png", "/data/b/1.png"]
    assert [table.rows(split).tolist() for split in ("train", "val", "test")] == [[0], [1], [2]]
    assert table.counts() == {"train": [1, 0], "val": [1, 0], "test": [0, 1]}


def test_several_labels_are_counted_for_every_class_they_show():
    table = index(targets=np.array([[1, 1], [0, 1], [0, 0]], np.uint8))
    assert table.multi_label
    assert table.counts() == {"train": [1, 1], "val": [0, 1], "test": [0, 0]}


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["a", "c"]},
        {"paths": path_table(["a/1.png", "a/2.png", "b/2.png"])},
        {"paths": path_table(["a/1.png", "a/2.png", "c/1.png"])},
        {"targets": np.array([0, 1, 1])},
        {"splits": np.array([0, 1, 1], np.int8)},
        {"content": np.ones((3, 2), np.uint64)},
    ],
    ids=["classes", "name", "folder", "targets", "splits", "content"],
)
def test_the_fingerprint_changes_with_everything_a_run_sees(changes):
    assert index(**changes).fingerprint() != index().fingerprint()


def test_the_fingerprint_stays_when_the_data_set_moves_as_a_whole():
    assert index(root="/elsewhere").fingerprint() == index().fingerprint()


def test_taking_rows_keeps_every_column_in_step():
    taken = index().take(np.array([2, 0]))
    assert [taken.path(row) for row in range(2)] == ["/data/b/1.png", "/data/a/1.png"]
    assert taken.targets.tolist() == [1, 0]
    assert taken.splits.tolist() == [2, 0]
    assert taken.content.tolist() == [[4, 5], [0, 1]]
    assert taken.classes == ("a", "b")


def test_natural_order_counts_as_people_do():
    names = ["img12", "img2", "Img1", "10", "9", "b", "A", "b"]
    assert natural_order(names) == ["9", "10", "A", "b", "Img1", "img2", "img12"]
