"""Format the predictions of a run for its test images as CSV."""

import csv
import io
from collections.abc import Sequence

import torch

from finetune.data.index import Index
from finetune.file_schema import LABELS, PREDICTIONS, PREDICTIONS_MULTI_LABEL, labels_above_half
from finetune.terminal import csv_cell


def predictions_csv(index: Index, rows: torch.Tensor, probabilities_NK: torch.Tensor) -> str:
    """Return one line per image: file, true and predicted classes, and their probabilities in full precision.

    Args:
        index: Index of the run.
        rows: Rows of the index (N,).
        probabilities_NK: Probabilities of those rows.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PREDICTIONS_MULTI_LABEL if index.multi_label else PREDICTIONS)
    cells = _several if index.multi_label else _one
    for row, probabilities in zip(rows.tolist(), probabilities_NK.tolist(), strict=True):
        # paths and class names are escaped where a spreadsheet would take them for a formula; numbers are left alone
        writer.writerow([csv_cell(index.path(row)), *cells(index, row, probabilities)])
    return text.getvalue()


def _one(index: Index, row: int, probabilities: Sequence[float]) -> list[str]:
    target = int(index.targets[row])
    predicted = max(range(len(probabilities)), key=probabilities.__getitem__)
    names = [csv_cell(index.classes[number]) for number in (target, predicted)]
    return [*names, repr(probabilities[predicted]), repr(probabilities[target])]


def _several(index: Index, row: int, probabilities: Sequence[float]) -> list[str]:
    target = labels_above_half(index.classes, index.targets[row].tolist())
    predicted = labels_above_half(index.classes, probabilities)
    return [csv_cell(target), csv_cell(predicted), repr(max(probabilities)), LABELS.join(map(repr, probabilities))]
