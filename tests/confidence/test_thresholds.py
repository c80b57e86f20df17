"""Decision thresholds of models for several labels."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve

from finetune.confidence.thresholds import best_threshold, fit_thresholds, labels_shown, threshold_problems


def draw(seed: int, images: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities, rarer from class to class, and what is shown."""
    random = np.random.default_rng(seed)
    probabilities = random.beta(0.4, 0.5 + np.arange(classes), (images, classes)).astype(np.float32)
    return probabilities, (random.random((images, classes)) < probabilities).astype(np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_has_a_higher_f1_by_given_labels(seed: int) -> None:
    probabilities, shown = draw(seed, 200)
    # images of the same probability are on the same side
    probabilities = probabilities.round(2)
    for at in range(4):
        threshold = best_threshold(probabilities[:, at], shown[:, at])
        precision, recall, _ = precision_recall_curve(shown[:, at], probabilities[:, at])
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
        assert f1_score(shown[:, at], probabilities[:, at] > threshold) == pytest.approx(best)


def test_of_calibrated_probabilities_it_comes_near_half_of_the_f1_that_it_reaches() -> None:
    # Lipton et al. 2014
    probabilities, shown = draw(0, 100_000)
    few, labels = draw(1, 2_000)
    for at, threshold in enumerate(fit_thresholds(few, labels).thresholds):
        reached = f1_score(shown[:, at], probabilities[:, at] > threshold)
        assert threshold == pytest.approx(reached / 2, abs=0.03)
        assert reached > f1_score(shown[:, at], probabilities[:, at] > 0.5)


def test_a_class_that_no_image_shows_or_every_one_keeps_one_half() -> None:
    probabilities, shown = draw(1, 200)
    shown[:, 1], shown[:, 2] = 0, 1
    # one is enough
    shown[0, 0], shown[1:, 0] = 1, 0
    shown[0, 3], shown[1:, 3] = 0, 1
    fitted = fit_thresholds(probabilities, shown)
    assert fitted.left == (1, 2)
    assert fitted.thresholds[1:3] == (0.5, 0.5)
    assert 0.5 not in (fitted.thresholds[0], fitted.thresholds[3])


def test_thresholds_are_between_two_probabilities_so_that_last_digits_do_not_decide() -> None:
    probabilities = np.array([0.9, 0.8, 0.3, 0.1], np.float32)
    assert best_threshold(probabilities, np.array([1, 1, 0, 0])) == 0.55
    assert best_threshold(probabilities, np.array([1, 1, 1, 1])) == 0.05
    assert labels_shown(np.array([0.56, 0.55, 0.54]), (0.55, 0.55, 0.55)) == [0]


@pytest.mark.parametrize(
    "values", [[0.5], [0.5, float("nan")], [0.5, 1.0], [0.5, -0.1], [0.5, 1], ["x", 0.5], "xy", {}]
)
def test_thresholds_in_a_file_that_are_not_one_of_each_class_are_told(values: object) -> None:
    assert threshold_problems(values, classes=2) == [
        "thresholds: must be 2 numbers from 0 to below 1, one of each class"
    ]
    assert threshold_problems([0.0, 0.999], classes=2) == []
