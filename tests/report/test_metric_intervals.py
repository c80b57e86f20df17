"""Intervals come from what the run has written, and hold the figures that they belong to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.errors import UserError
from finetune.report.metric_intervals import metric_intervals
from finetune.training.eval_outputs import save_outputs
from tests.imaginary_results import imaginary_results


def write_predictions(folder: Path, probabilities: list[object]) -> None:
    rows = "".join(f"{number}.png,{one}\n" for number, one in enumerate(probabilities))
    (folder / "predictions.csv").write_text(f"path,target_probability\n{rows}")


def test_a_loss_is_that_of_the_probabilities_of_the_true_classes(tmp_path: Path) -> None:
    probabilities = np.linspace(0.2, 1, 8)
    write_predictions(tmp_path, probabilities.tolist())
    found = metric_intervals(tmp_path, imaginary_results([[3, 1], [0, 4]]))
    assert set(found) == {"loss", "f1_macro"}
    low, high = found["loss"]
    assert low < -np.log(probabilities).mean() < high
    assert found["f1_macro"][0] < 0.9 < found["f1_macro"][1]


def test_several_labels_have_an_average_precision_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    targets = random.random((40, 3)) < 0.5
    scores = np.clip(0.3 * targets + 0.6 * random.random((40, 3)), 0, 1).astype(np.float32)
    outputs = {"rows": torch.arange(40), "targets": torch.tensor(targets).byte(), "probabilities": torch.tensor(scores)}
    save_outputs(tmp_path / "evaluation.safetensors", {"test": outputs, "val": outputs})
    results = imaginary_results([[3, 1], [0, 4]])
    results = replace(results, test=replace(results.test, map=0.9))
    found = metric_intervals(tmp_path, results)
    assert set(found) == {"loss", "f1_macro", "map"}
    losses = -np.log(np.where(targets, scores, 1 - scores)).mean()
    assert found["loss"][0] < losses < found["loss"][1]
    faultless = replace(results, test=replace(results.test, map=1.0, acc=1.0))
    assert set(metric_intervals(tmp_path, faultless)) == {"loss"}


@pytest.mark.parametrize(
    ("probabilities", "confusion", "message"),
    [
        ([0.5], [[3, 1], [0, 4]], "Its confusion matrix is not that"),
        ([0.5] * 8, [[9, -1], [0, 0]], "Its confusion matrix is not that"),
        ([0.5] * 8, [[8], [0, 0]], "Its confusion matrix is not that"),
        ([0.5] * 8, [[10**30, 0], [0, 0]], "Its confusion matrix is not that"),
        ([0.5] * 7 + ["x"], [[3, 1], [0, 4]], "A probability is not a number"),
    ],
)
def test_a_damaged_run_is_told(
    tmp_path: Path, probabilities: list[object], confusion: list[list[int]], message: str
) -> None:
    write_predictions(tmp_path, probabilities)
    with pytest.raises(UserError, match=message):
        metric_intervals(tmp_path, imaginary_results(confusion))
