"""The 95 % intervals of a run's test metrics, from what its folder holds."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import UserError
from finetune.file_schema import THRESHOLD
from finetune.report.bootstrap import (
    Interval,
    average_precision_interval,
    intervals,
    mean_interval,
    multi_label_intervals,
)
from finetune.report.confusion import confusion_of
from finetune.report.run_files import read_evaluation, read_table
from finetune.results import Results
from finetune.run_folder import RunFolder

# smallest probability whose logarithm is taken; that of a single-precision number may be 0
_LEAST = 1e-38


def metric_intervals(run: Path, results: Results) -> dict[str, Interval]:
    """Return bootstrap intervals of macro F1 and loss, with several labels also of the mean average precision, by metric.

    Where no image is wrong there is none of macro F1: resampling images that are all correct gives only correct ones.

    Args:
        run: Folder of a finished run.
        results: Its results.

    Raises:
        UserError: A file of the run is missing or damaged.
    """
    folder, test = RunFolder(run), results.test
    if test.map is None:
        rows = read_table(folder.predictions, ("target_probability",))
        try:
            confusion_KK = confusion_of(test, len(results.data.classes))
            is_sound = bool((confusion_KK.data >= 0).all()) and int(confusion_KK.sum()) == len(rows) > 0
        except (ValueError, OverflowError):
            is_sound = False
        if not is_sound:
            raise UserError(
                f"{folder.results}: damaged. Its confusion matrix is not that of the images in predictions.csv."
            )
        found = {"loss": _loss(_numbers([row["target_probability"] for row in rows], folder.predictions))}
        return found | ({"f1_macro": intervals(confusion_KK)["f1_macro"]} if test.acc < 1 else {})
    evaluation = read_evaluation(folder.evaluation)
    if not evaluation or not len(evaluation["test"]["rows"]):
        return {}
    targets_NK, scores_NK = evaluation["test"]["targets"] > 0, evaluation["test"]["probabilities"]
    thresholds = THRESHOLD if results.thresholds is None else np.array(results.thresholds.values)
    if targets_NK.shape != scores_NK.shape or np.shape(thresholds) not in ((), scores_NK.shape[1:]):
        raise UserError(f"{folder.evaluation}: damaged. Targets and probabilities of test differ in shape.")
    found = {"loss": _loss(np.where(targets_NK, scores_NK, 1 - scores_NK))}
    if test.acc < 1:
        found["f1_macro"] = multi_label_intervals(targets_NK, scores_NK > thresholds)["f1_macro"]
    if test.map < 1:
        found["map"] = average_precision_interval(targets_NK, scores_NK)
    return found


def _numbers(cells: list[str], path: Path) -> npt.NDArray[np.float64]:
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise UserError(f"{path}: damaged. A probability is not a number: {error}.") from None


def _loss(likely: npt.NDArray[np.floating[Any]]) -> Interval:
    """Return the interval of the mean cross-entropy from the probability of the truth, (N,) or, for several labels, (N, K)."""
    losses = -np.log(np.clip(likely.astype(np.float64), _LEAST, 1))
    return mean_interval(losses if losses.ndim == 1 else losses.mean(axis=1))
