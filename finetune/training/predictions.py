"""Format the predictions of a run for its test images as CSV."""

import csv
import io
from collections.abc import Sequence

import torch

from finetune.confidence.thresholds import labels_shown
from finetune.data.index import Index
from finetune.file_schema import LABELS, PREDICTIONS, PREDICTIONS_MULTI_LABEL, joined_labels
from finetune.terminal import csv_cell


def predictions_csv(
    index: Index, rows: torch.Tensor, probabilities_NK: torch.Tensor, thresholds: Sequence[float] = ()
) -> str:
    """Return one line per image: file, true and predicted classes, and their probabilities in full precision.

    Args:
        index: Index of the run.
        rows: Rows of the index (N,).
        probabilities_NK: Probabilities of those rows.
        thresholds: With several labels, the probability above which each class is predicted.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PREDICTIONS_MULTI_LABEL if index.multi_label else PREDICTIONS)
    for row, probabilities in zip(rows.tolist(), probabilities_NK.tolist(), strict=True):
        # paths and class names are escaped where a spreadsheet would take them for a formula; numbers are left alone
        cells = (
            _several(index, row, probabilities, thresholds) if index.multi_label else _one(index, row, probabilities)
        )
        writer.writerow([csv_cell(index.path(row)), *cells])
    return text.getvalue()


def _one(index: Index, row: int, probabilities: Sequence[float]) -> list[str]:
    target = int(index.targets[row])
    predicted = max(range(len(probabilities)), key=probabilities.__getitem__)
    names = [csv_cell(index.classes[number]) for number in (target, predicted)]
    return [*names, repr(probabilities[predicted]), repr(probabilities[target])]


def _several(index: Index, row: int, probabilities: Sequence[float], thresholds: Sequence[float]) -> list[str]:
    target = joined_labels(index.classes, index.targets[row].nonzero()[0])
    predicted = joined_labels(index.classes, labels_shown(probabilities, thresholds))
    return [csv_cell(target), csv_cell(predicted), repr(max(probabilities)), LABELS.join(map(repr, probabilities))]
