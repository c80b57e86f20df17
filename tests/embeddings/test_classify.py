"""Simple classifiers compared with scikit-learn, and what they must not use."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetune.cli import main
from finetune.embeddings.classify import METHODS, fit_and_test, split_index
from finetune.embeddings.embeddings import Embeddings
from finetune.errors import UserError
from tests.embeddings.embedding_sets import digits, embeddings_of


@pytest.fixture(scope="module")
def few_digits() -> Embeddings:
    return digits().take(np.arange(400))


def test_missing_splits_are_made_and_images_without_labels_left_out(few_digits: Embeddings) -> None:
    labels = few_digits.labels.copy()
    labels[:5] = -1
    index, rows, notes = split_index(replace(few_digits, labels=labels))
    assert rows.tolist() == list(range(5, 400))
    assert notes[0] == "5 images without a label are left out."
    assert notes[1].startswith("val and test: split off the training images")
    counts = index.split_sizes()
    assert counts["val"] + counts["test"] == pytest.approx(0.3 * 395, abs=12)
    given = replace(few_digits, splits=np.array([0, 0, 1, 2] * 100, np.int8))
    index, _, notes = split_index(given)
    assert (index.splits == given.splits).all()
    assert notes == []


def test_logistic_regression_is_that_of_scikit_learn_at_the_chosen_strength(few_digits: Embeddings) -> None:
    index, rows, _ = split_index(few_digits)
    features = few_digits.features[rows]
    result = fit_and_test("logistic", features, index)
    classifier = result.classifier
    train, test = index.rows("train"), index.rows("test")
    losses = {row["C"]: row["loss"] for row in classifier.tried}
    assert classifier.chosen["C"] == min(losses, key=lambda strength: (losses[strength], strength))
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=classifier.chosen["C"], max_iter=5000, tol=1e-7))
    reference.fit(features[train].astype(np.float64), index.targets[train])
    probabilities = reference.predict_proba(features[test].astype(np.float64))
    np.testing.assert_allclose(result.test_probabilities, probabilities, atol=2e-3)
    right = result.test_probabilities.argmax(1) == index.targets[test]
    assert result.metrics["test"].acc == pytest.approx(right.mean())
    # the same classifier as one linear layer on the features
    logits = features[test] @ classifier.arrays["weight"].T + classifier.arrays["bias"]
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), result.test_probabilities, atol=1e-4)


def test_the_nearest_neighbour_is_that_of_scikit_learn(few_digits: Embeddings) -> None:
    index, rows, _ = split_index(few_digits)
    features, train, test = few_digits.features[rows], index.rows("train"), index.rows("test")
    result = fit_and_test("knn", features, index, metric="l2")
    chosen = int(result.classifier.chosen["k"])
    left_out = {int(row["k"]): row["acc"] for row in result.classifier.tried}
    assert chosen == max(left_out, key=lambda k: (left_out[k], -k))

    def weights(distances: Any) -> Any:
        return np.exp(-distances / distances[:, -1:])

    reference = KNeighborsClassifier(chosen, weights=weights).fit(features[train], index.targets[train])
    np.testing.assert_allclose(result.test_probabilities, reference.predict_proba(features[test]), atol=1e-4)
    one = KNeighborsClassifier(2).fit(features[train], index.targets[train])
    nearest = one.kneighbors(features[train])[1][:, 1]
    assert left_out[1] == pytest.approx((index.targets[train][nearest] == index.targets[train]).mean())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_tested_shapes_nothing(method: str, few_digits: Embeddings) -> None:
    index, rows, _ = split_index(few_digits)
    features = np.array(few_digits.features[rows])
    first = fit_and_test(method, features, index)
    outside = np.concatenate([index.rows("val"), index.rows("test")])
    features[outside] = 0
    index.targets[outside] = 0
    second = fit_and_test(method, features, index)
    assert first.classifier.chosen == second.classifier.chosen
    for name, array in first.classifier.arrays.items():
        np.testing.assert_array_equal(array, second.classifier.arrays[name], err_msg=name)
    assert first.metrics["test"].acc > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_two_classes_and_a_class_without_a_training_image_are_fine(method: str) -> None:
    draw = np.random.default_rng(0)
    labels = np.array([0, 1] * 40)
    features = draw.normal(size=(81, 3)) + np.append(labels, 0)[:, None] * 8
    splits = [0] * 50 + [1] * 15 + [2] * 16
    made = embeddings_of(features.astype(np.float16), [*labels.tolist(), 2], splits)
    index, rows, notes = split_index(made)
    assert notes == ["without a training image, so never predicted: class 2."]
    result = fit_and_test(method, made.features[rows], index, metric="l2")
    assert result.metrics["test"].acc == pytest.approx(15 / 16)
    assert result.metrics["test"].recall == (1, 1, 0)
    np.testing.assert_allclose(result.test_probabilities.sum(1), 1)


def test_without_a_record_of_the_model_there_is_no_result_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embeddings_of(np.eye(4), [0, 1, 0, 1]).save(tmp_path / "e.npz")
    assert main(["classify", str(tmp_path / "e.npz")]) == 2
    assert "Their record lacks model, stages, stage" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]


def test_labels_and_two_classes_are_needed() -> None:
    with pytest.raises(UserError, match="EMBEDDINGS: classify needs labelled images of at least two classes"):
        split_index(embeddings_of(np.eye(4)))
    with pytest.raises(UserError, match="needs one label per image"):
        split_index(embeddings_of(np.eye(4), [0, 1, 0, 1], multi_label=True))
    made = embeddings_of(np.eye(4), [0, 1, 0, 1], [1, 1, 2, 2])
    with pytest.raises(UserError, match="train has none"):
        split_index(made)
