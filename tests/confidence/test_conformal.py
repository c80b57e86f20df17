"""Prediction sets: the classes among which the true one is as often as is wanted."""

import json

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

from finetune.confidence.conformal import (
    conformal_curve,
    conformal_problems,
    prediction_sets,
    read_conformal,
)
from finetune.errors import UserError

CLASSES = 5


class GivesItsInput(ClassifierMixin, BaseEstimator):
    """A fitted classifier of scikit-learn whose probabilities are its input."""

    classes_ = np.arange(CLASSES)

    def predict_proba(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities

    def predict(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities.argmax(1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


def draw(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure of themselves, and true classes."""
    random = np.random.default_rng(seed)
    true = random.dirichlet([0.6] * CLASSES, images)
    sharp = true**1.5 / (true**1.5).sum(1, keepdims=True)
    return sharp, (true.cumsum(1) > random.random((images, 1))).argmax(1)


@pytest.mark.parametrize("images", [40, 133, 1000])
@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_are_those_of_mapie_or_a_little_larger(images: int, coverage: float) -> None:
    given, targets = draw(images, 0)
    others, _ = draw(2000, 1)
    theirs = SplitConformalClassifier(
        GivesItsInput(), confidence_level=coverage, conformity_score="lac", prefit=True
    ).conformalize(given, targets)
    wanted = theirs.predict_set(others)[1][:, :, 0]
    threshold = conformal_curve(given, targets).threshold(coverage)
    assert threshold is not None
    ours = others >= threshold
    # the threshold is rounded down, to a rank that is kept and to three digits
    assert not (wanted & ~ours).any()
    assert ours.sum() <= 1.02 * wanted.sum()


def test_the_true_class_is_in_the_set_as_often_as_is_wanted() -> None:
    others, targets = draw(20_000, 0)
    for coverage, images in ((0.9, 60), (0.95, 200), (0.99, 400)):
        found = []
        for seed in range(200):
            least = conformal_curve(*draw(images, seed + 1)).threshold(coverage)
            assert least is not None
            found.append((others[np.arange(len(others)), targets] >= least).mean())
        # on average over draws of the validation images, and not much more often
        error = np.std(found) / np.sqrt(len(found))
        assert coverage - 2 * error <= np.mean(found) <= coverage + 1.5 / images + 0.01


def test_what_so_few_images_cannot_promise_is_refused_with_what_they_can() -> None:
    curve = conformal_curve(*draw(19, 0))
    assert curve.best() == 0.95
    assert curve.threshold(0.95) is not None
    with pytest.raises(UserError, match=r"from the 19 validation images.*The most that can be is --sets 0\.95"):
        prediction_sets(coverage=0.951, curve=curve, several=False)
    with pytest.raises(UserError, match=r"must be above 0 and below 1"):
        prediction_sets(coverage=1.0, curve=curve, several=False)
    with pytest.raises(UserError, match="models of earlier versions"):
        prediction_sets(coverage=0.9, curve=None, several=False)
    with pytest.raises(UserError, match="needs a model of one label"):
        prediction_sets(coverage=0.9, curve=curve, several=True)


def test_a_curve_survives_its_file_and_a_damaged_one_is_told() -> None:
    curve = conformal_curve(*draw(3000, 0))
    plain = json.loads(json.dumps(curve.to_plain()))
    assert read_conformal(plain) == curve
    assert len(curve.points) < 400
    for points in (
        [[0, 0.1]],
        [[1, 0.2], [2, 0.1]],
        [[1, 1.5]],
        [[1, float("nan")]],
        [[9999, 0.1]],
        [[1, True]],
        [[1]],
        3,
    ):
        assert conformal_problems(plain | {"points": points}), points
    for damaged in (None, [], {"points": []}, {"images": "x", "points": []}):
        assert conformal_problems(damaged)
