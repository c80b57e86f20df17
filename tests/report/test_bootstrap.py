"""Bootstrap intervals compared with resampling image by image, with scikit-learn's scores."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import average_precision_score, f1_score

from finetune.report.bootstrap import average_precision_interval, intervals, mean_interval, multi_label_intervals


def resampled(targets: np.ndarray, found: np.ndarray, score: object, times: int = 400) -> tuple[float, float]:
    random = np.random.default_rng(1)
    draws = [random.integers(0, len(targets), len(targets)) for _ in range(times)]
    low, high = np.percentile([score(targets[rows], found[rows]) for rows in draws], [2.5, 97.5])  # type: ignore[operator]
    return float(low), float(high)


def test_drawing_cells_is_drawing_images() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 4, 300)
    found = np.where(random.random(300) < 0.7, targets, random.integers(0, 4, 300))
    # a fifth class that never occurs does not enter the mean
    confusion = np.zeros((5, 5), np.int64)
    np.add.at(confusion, (targets, found), 1)
    given = intervals(csr_array(confusion))
    assert given["acc"] == pytest.approx(resampled(targets, found, lambda t, p: (t == p).mean()), abs=0.01)
    expected = resampled(targets, found, lambda t, p: f1_score(t, p, average="macro"))
    assert given["f1_macro"] == pytest.approx(expected, abs=0.01)


def test_a_perfect_score_has_no_width_and_more_images_a_smaller_one() -> None:
    assert intervals(csr_array(np.diag([5, 7])))["acc"] == (1.0, 1.0)
    widths = [np.ptp(intervals(csr_array(np.array([[8, 2], [3, 7]]) * times))["acc"]) for times in (1, 100)]
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.2)


def test_several_labels() -> None:
    random = np.random.default_rng(0)
    targets = random.random((200, 3)) < 0.4
    found = targets ^ (random.random((200, 3)) < 0.15)
    given = multi_label_intervals(targets, found)
    expected = resampled(targets, found, lambda t, p: (t == p).all(1).mean())
    assert given["acc"] == pytest.approx(expected, abs=0.015)
    expected = resampled(targets, found, lambda t, p: f1_score(t, p, average="macro"))
    assert given["f1_macro"] == pytest.approx(expected, abs=0.015)


def test_a_class_that_no_image_shows_does_not_count_as_0() -> None:
    random = np.random.default_rng(0)
    targets = np.column_stack([random.random((200, 3)) < 0.4, np.zeros(200, np.bool_)])
    found = targets ^ np.column_stack([random.random((200, 3)) < 0.15, np.zeros(200, np.bool_)])
    three = multi_label_intervals(targets[:, :3], found[:, :3])["f1_macro"]
    assert multi_label_intervals(targets, found)["f1_macro"] == three


def test_average_precision_and_a_mean_of_losses() -> None:
    random = np.random.default_rng(0)
    targets = random.random((150, 3)) < 0.3
    # rounded, so that images share a probability
    scores = np.round(np.clip(0.4 * targets + 0.7 * random.random((150, 3)), 0, 1), 1)
    expected = resampled(targets, scores, lambda t, p: average_precision_score(t, p, average="macro"), times=400)
    assert average_precision_interval(targets, scores) == pytest.approx(expected, abs=0.015)
    losses = random.exponential(size=150)
    error = losses.std() / np.sqrt(150)
    expected = losses.mean() - 1.96 * error, losses.mean() + 1.96 * error
    assert mean_interval(losses) == pytest.approx(expected, abs=0.03)
