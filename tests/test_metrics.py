"""Metrics with one label per image and with several, against scikit-learn and torch."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from torchmetrics.classification import MulticlassCohenKappa, MulticlassRecall

from finetune.errors import UserError
from finetune.metrics import build_metrics, correct_predictions, split_metrics, update_metrics
from finetune.plain import Json, to_plain

RANDOM = np.random.default_rng(0)
TARGETS = (RANDOM.random((23, 4)) < (0.2, 0.5, 0.8, 0.4)).astype(np.uint8)
LOGITS = (RANDOM.normal(size=(23, 4)) + TARGETS).astype(np.float32)


def counted(logits: np.ndarray, targets: np.ndarray) -> dict[str, Json]:
    """In two batches, as a split is counted."""
    built = build_metrics(targets.shape[1], multi_label=True)
    for part in (slice(0, 10), slice(10, None)):
        update_metrics(built, logits=torch.from_numpy(logits[part]), targets=torch.from_numpy(targets[part]))
    return to_plain(split_metrics(built))


def test_metrics_of_several_labels_are_scikit_learns() -> None:
    found = counted(LOGITS, TARGETS)
    probabilities, predicted = 1 / (1 + np.exp(-LOGITS)), LOGITS > 0
    expected = {
        "acc": sklearn.accuracy_score(TARGETS, predicted),
        "f1_macro": sklearn.f1_score(TARGETS, predicted, average="macro"),
        "f1_micro": sklearn.f1_score(TARGETS, predicted, average="micro"),
        "recall": sklearn.recall_score(TARGETS, predicted, average=None),
        "map": sklearn.average_precision_score(TARGETS, probabilities, average="macro"),
        "loss": np.mean([sklearn.log_loss(TARGETS[:, k], probabilities[:, k]) for k in range(4)]),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["confusion"] == sklearn.multilabel_confusion_matrix(TARGETS, predicted).tolist()


def test_the_calibration_error_is_over_all_pairs_of_image_and_class() -> None:
    # pairs at a probability of 0.75, half of them true: 0.25 away
    logits, targets = np.full((12, 2), np.log(3), np.float32), np.array([[1, 0]] * 12, np.uint8)
    assert counted(logits, targets)["ece"] == pytest.approx(0.25, abs=1e-6)


def test_a_class_that_no_image_shows_is_left_out_of_the_mean_average_precision() -> None:
    targets = TARGETS.copy()
    targets[:, 1] = 0
    kept = [0, 2, 3]
    expected = sklearn.average_precision_score(targets[:, kept], LOGITS[:, kept], average="macro")
    assert counted(LOGITS, targets)["map"] == pytest.approx(expected, abs=1e-6)
    assert counted(LOGITS, np.zeros_like(targets))["map"] == 0


def test_the_macro_f1_leaves_out_a_class_without_targets_and_predictions_as_that_of_one_label_does() -> None:
    targets, logits = TARGETS.copy(), LOGITS.copy()
    targets[:, 1], logits[:, 1] = 0, -5
    kept = [0, 2, 3]
    expected = sklearn.f1_score(targets[:, kept], logits[:, kept] > 0, average="macro")
    assert counted(logits, targets)["f1_macro"] == pytest.approx(expected, abs=1e-6)
    assert counted(np.full_like(logits, -5), np.zeros_like(targets))["f1_macro"] == 0


def test_an_image_is_right_when_every_label_is() -> None:
    right = correct_predictions(
        torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, 0], [1, 0]], dtype=torch.uint8)
    )
    assert right.tolist() == [True, False]
    assert correct_predictions(torch.tensor([[1.0, -1.0], [1.0, 2.0]]), torch.tensor([0, 0])).tolist() == [True, False]


def one_label(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, Json]:
    built = build_metrics(logits.shape[1])
    for part in (slice(0, 10), slice(10, None)):
        update_metrics(built, logits=logits[part], targets=targets[part])
    return to_plain(split_metrics(built))


@pytest.mark.parametrize("classes", [4, 40])
def test_metrics_of_one_label_are_scikit_learns(classes: int) -> None:
    random = torch.Generator().manual_seed(classes)
    logits = torch.randn(31, classes, generator=random)
    targets = torch.randint(0, classes, (31,), generator=random)
    predicted = logits.argmax(1)
    found = one_label(logits, targets)
    assert found["acc"] == pytest.approx(sklearn.accuracy_score(targets, predicted), abs=1e-6)
    # over the classes that occur, as here
    assert found["f1_macro"] == pytest.approx(sklearn.f1_score(targets, predicted, average="macro"), abs=1e-6)
    recalls = sklearn.recall_score(targets, predicted, labels=range(classes), average=None, zero_division=0)
    assert found["recall"] == pytest.approx(recalls.tolist(), abs=1e-6)
    assert found["confusion"] == sklearn.confusion_matrix(targets, predicted, labels=range(classes)).tolist()


def test_ten_thousand_classes_are_counted_without_a_matrix_of_all_pairs() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(31, 10_000, generator=random)
    targets = torch.randint(0, 10_000, (31,), generator=random)
    logits[torch.arange(20), targets[:20]] += 20
    found = one_label(logits, targets)
    assert "confusion" not in found
    cells = torch.tensor(found["confusion_cells"])
    assert cells[:, 2].sum() == 31
    hits = cells[cells[:, 0] == cells[:, 1], 2].sum()
    assert hits == (logits.argmax(1) == targets).sum() >= 20
    assert found["acc"] == pytest.approx(int(hits) / 31)
    assert sum(found["recall"]) == pytest.approx(sum((targets[:20] == k).any() for k in range(10_000)), abs=1)


@pytest.mark.parametrize("several", [False, True])
def test_counting_does_not_compare_with_every_pair_of_classes(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise AssertionError("a copy of all pairs of classes for each image")

    monkeypatch.setattr(torch.Tensor, "repeat", refused)
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(8)
    shown = torch.nn.functional.one_hot(targets, 30)
    metrics = build_metrics(30, multi_label=several)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        update_metrics(metrics, logits=logits, targets=shown if several else targets)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    cells = metrics["confusion"].compute()
    if several:
        assert cells[:, 1].sum() == 8
    else:
        assert cells.tolist() == [[row, int(logits[row].argmax()), 1] for row in range(8)]


def test_a_metric_of_the_user_s_is_measured_beside_the_others_on_a_copy() -> None:
    kappa = MulticlassCohenKappa(3)
    metrics = build_metrics(3, own={"kappa": kappa})
    update_metrics(metrics, logits=torch.eye(3), targets=torch.tensor([0, 1, 1]))
    measured = split_metrics(metrics)
    expected = float(MulticlassCohenKappa(3)(torch.eye(3), torch.tensor([0, 1, 1])))
    assert measured.own == {"kappa": pytest.approx(expected)}
    assert measured.scalars()["kappa"] == pytest.approx(expected)
    assert kappa.update_count == 0


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"acc": MulticlassCohenKappa(3)}, r"metrics\['acc'\]: must be a torchmetrics Metric under a name of its own"),
        ({"mine": 3}, r"metrics\['mine'\]: .*It is an int; taken: .*acc"),
    ],
)
def test_a_metric_under_a_taken_name_or_that_is_none_is_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_metrics(3, own=own)


def test_a_metric_of_several_numbers_is_refused_once_it_gives_them() -> None:
    metrics = build_metrics(3, own={"each": MulticlassRecall(3, average="none")})
    update_metrics(metrics, logits=torch.eye(3), targets=torch.tensor([0, 1, 1]))
    with pytest.raises(UserError, match=r"metrics\['each'\]: must give one number\. It gave \(3,\)"):
        split_metrics(metrics)
