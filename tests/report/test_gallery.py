"""The choice of gallery images: confident mistakes first, uncertain hits first."""

import numpy as np

from finetune.report.gallery import choose, correct_predictions


def test_the_surest_mistakes_and_the_least_sure_hits_come_first() -> None:
    shares = np.array([[0.9, 0.1], [0.4, 0.6], [0.55, 0.45], [0.01, 0.99], [0.3, 0.7]], np.float32)
    evaluation = {"rows": np.array([3, 5, 6, 8, 9]), "targets": np.array([0, 0, 0, 0, 0]), "probabilities": shares}
    paths = [f"{row}.png" for row in evaluation["rows"]]
    mistakes, hits = choose(evaluation, paths, ["cat", "dog"], [0.5, 0.5])
    assert [(a.path, a.true, a.found) for a in mistakes] == [
        ("8.png", "cat", "dog"),
        ("9.png", "cat", "dog"),
        ("5.png", "cat", "dog"),
    ]
    assert [(a.row, a.found) for a in hits] == [(6, "cat"), (3, "cat")]
    assert mistakes[0].probability == np.float32(0.99)


def test_with_several_labels_one_wrong_label_is_a_mistake() -> None:
    shares = np.array([[0.9, 0.2, 0.95], [0.6, 0.1, 0.1], [0.9, 0.02, 0.03], [0.2, 0.45, 0.1]], np.float32)
    targets = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]], np.uint8)
    evaluation = {"rows": np.arange(4), "targets": targets, "probabilities": shares}
    halves = [0.5, 0.5, 0.5]
    assert correct_predictions(evaluation, halves).tolist() == [False, True, True, False]
    assert correct_predictions(evaluation, [0.5, 0.44, 0.97]).tolist() == [True, True, True, False]
    mistakes, hits = choose(evaluation, list("abcd"), ["x", "y", "z"], halves)
    assert [(a.path, a.true, a.found) for a in mistakes] == [("a", "x", "x;z"), ("d", "z", "")]
    assert [a.path for a in hits] == ["b", "c"]
