"""Retrieval quality compared with scikit-learn and with values computed by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from finetune.embeddings import retrieval
from finetune.embeddings.retrieval import queries_and_rest, retrieval_quality
from finetune.errors import UserError
from tests.embeddings.embedding_sets import embeddings_of


def test_on_a_line_the_figures_are_those_counted_by_hand() -> None:
    # positions 0, 1, 3, 6 with classes a, b, a, b
    made = embeddings_of(np.array([[0.0], [1.0], [3.0], [6.0]]), [0, 1, 0, 1])
    rows = np.arange(4)
    found = retrieval_quality(made, queries=rows, among=rows, ks=(1, 2), metric="l2")
    # ranks of the other image of the class: 0 -> 1, 3: second; 1 -> 0, 3, 6: third; 3 -> 1, 0: second (6 is as far, later)
    # 6 -> 3, 1: second
    assert found.recall[1] == 0
    assert found.recall[2] == 0.75
    assert found.map == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_mean_average_precision_is_that_of_scikit_learn(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 120)
    made = embeddings_of(draw.normal(size=(120, 6)) + labels[:, None] % 2, labels.tolist())
    queries, among = np.arange(40), np.arange(30, 120)
    monkeypatch.setattr(retrieval, "_CELLS", 1000)
    found = retrieval_quality(made, queries=queries, among=among, ks=(1, 5), metric=metric)
    precisions, first, five = [], [], []
    for query in queries:
        rest = among[among != query]
        difference = made.features[rest] - made.features[query]
        scores = -np.linalg.norm(difference, axis=1)
        if metric == "cosine":
            scores = made.features[rest] @ made.features[query] / np.linalg.norm(made.features[rest], axis=1)
        same = labels[rest] == labels[query]
        precisions.append(average_precision_score(same, scores))
        ranked = same[np.argsort(-scores)]
        first.append(ranked[0])
        five.append(ranked[:5].any())
    assert found.map == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found.recall[1] == pytest.approx(np.mean(first))
    assert found.recall[5] == pytest.approx(np.mean(five))
    assert (found.queries, found.among) == (40, 90)


def test_test_images_are_looked_for_among_the_others_and_without_splits_each_among_all() -> None:
    labels, features = [0, 1] * 4, np.eye(8)
    made = embeddings_of(features, labels, [0, 0, 0, 1, 1, 2, 2, 2])
    queries, among, words = queries_and_rest(made)
    assert (queries.tolist(), among.tolist()) == ([5, 6, 7], [0, 1, 2, 3, 4])
    assert words == "test images among those of the other splits"
    assert queries_and_rest(made, "val")[0].tolist() == [3, 4]
    without = embeddings_of(features, labels)
    queries, among, words = queries_and_rest(without)
    assert queries.tolist() == among.tolist() == list(range(8))
    with pytest.raises(UserError, match="--split val: 0 labelled images in it"):
        queries_and_rest(without, "val")


def test_images_that_are_alone_in_their_class_do_not_count_and_labels_are_needed() -> None:
    made = embeddings_of(np.eye(5), [0, 0, 1, 2, 2])
    rows = np.arange(5)
    found = retrieval_quality(made, queries=rows, among=rows)
    assert (found.queries, found.alone) == (4, 1)
    with pytest.raises(UserError, match="no query has another image of its class"):
        retrieval_quality(made, queries=np.array([2]), among=rows)
    with pytest.raises(UserError, match="needs labelled images of at least two classes"):
        retrieval_quality(embeddings_of(np.eye(5)), queries=rows, among=rows)
