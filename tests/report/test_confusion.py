"""The confusion matrix: the order of its classes, and the listed pairs."""

import numpy as np
from scipy.sparse import csr_array

from finetune.report.confusion import (
    Mistakes,
    clustered_order,
    confused_pairs,
    confusion_chart,
    confusion_of,
    most_confused,
)
from tests.imaginary_results import imaginary_metrics


def with_mistakes(classes: int, pairs: dict[tuple[int, int], int]) -> csr_array:
    matrix = np.diag(np.full(classes, 20))
    for (true, found), count in pairs.items():
        matrix[true, found] = count
        matrix[true, true] -= count
    return csr_array(matrix)


def test_classes_that_are_taken_for_one_another_stand_side_by_side() -> None:
    matrix = with_mistakes(9, {(0, 7): 9, (7, 0): 8, (2, 5): 6, (5, 2): 7})
    order = clustered_order(matrix.toarray())
    assert sorted(order) == list(range(9))
    assert abs(order.index(0) - order.index(7)) == 1
    assert abs(order.index(2) - order.index(5)) == 1


def test_without_mistakes_the_order_stays() -> None:
    assert clustered_order(with_mistakes(5, {}).toarray()) == [0, 1, 2, 3, 4]


def test_the_most_frequent_mistakes_are_listed_first_with_their_share_of_the_true_class() -> None:
    matrix = with_mistakes(4, {(3, 1): 5, (0, 2): 8, (1, 0): 1})
    pairs, kinds = confused_pairs(matrix, ["a", "b", "c", "d"], most=2)
    assert pairs == [
        Mistakes(true="a", found="c", count=8, share=0.4),
        Mistakes(true="d", found="b", count=5, share=0.25),
    ]
    assert kinds == 3


def test_of_very_many_classes_those_with_mistakes_are_shown() -> None:
    chosen = most_confused(with_mistakes(300, {(7, 260): 3}))
    assert len(chosen) == 200
    assert {7, 260} <= set(chosen)


def test_two_hundred_classes_are_all_named_and_nothing_in_a_name_is_mark_up() -> None:
    names = [f"class {k}" for k in range(199)] + ["<b>$x$</b>"]
    chart = str(confusion_chart(with_mistakes(200, {(3, 9): 4}), names))
    assert all(chart.count(f">class {k}<") == 2 for k in range(199))
    assert chart.count("&lt;b&gt;$x$&lt;/b&gt;") == 2
    assert "<b>" not in chart
    assert len(chart) < 300_000


def test_cells_are_the_matrix_that_is_not_written_of_very_many_classes() -> None:
    cells = [[0, 0, 7], [3, 9_999, 2], [9_999, 3, 1]]
    matrix = confusion_of(imaginary_metrics(confusion_cells=cells), 10_000)
    assert matrix.shape == (10_000, 10_000)
    assert matrix[3, 9_999] == 2
    assert matrix.sum() == 10
    pairs, kinds = confused_pairs(matrix, [str(k) for k in range(10_000)])
    assert [(pair.true, pair.found, pair.share) for pair in pairs] == [("3", "9999", 1.0), ("9999", "3", 1.0)]
    assert kinds == 2
    assert {3, 9_999} <= set(most_confused(matrix))
    whole = np.array([[2, 1], [0, 3]])
    assert (confusion_of(imaginary_metrics(confusion=whole.tolist()), 2).toarray() == whole).all()
