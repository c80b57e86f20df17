"""The metrics of a split, all from torchmetrics."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassRecall,
    MultilabelAveragePrecision,
    MultilabelConfusionMatrix,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelRecall,
)
from torchmetrics.utilities import dim_zero_cat

from finetune.errors import UserError, type_in_words
from finetune.file_schema import THRESHOLD
from finetune.results import Matrix, SplitMetrics

# B = batch, K = classes, M = cells of a confusion matrix that are not zero

# Guo et al. 2017, arXiv 1706.04599
_BINS = 15
# metrics of several labels that compare decisions; the others compare probabilities
_OF_DECISIONS = ("acc", "f1_macro", "f1_micro", "recall", "confusion")
# up to this many classes the confusion matrix is written in full; above, only its non-zero cells
MOST_IN_MATRIX = 1000


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Average precision, averaged over the classes that any image shows; 0 if no image shows any class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> torch.Tensor:  # type: ignore[override]  # torchmetrics' own average does so too
        """Return the mean over the classes that any image shows."""
        with warnings.catch_warnings():
            # a class without a positive image is left out here, and the audit reports it
            warnings.filterwarnings("ignore", message="No positive samples found in target")
            scores_K = super().compute()
        shown = torch.cat(list(self.target)).any(0) if isinstance(self.target, list) else self.target.any(0)
        return scores_K[shown].mean() if shown.any() else torch.zeros((), device=scores_K.device)


class _SeveralLabelsMacroF1(MultilabelF1Score):
    """Macro F1 over the classes that an image shows or that are predicted, as torchmetrics counts for one label per image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, threshold=THRESHOLD, average="macro")

    def compute(self) -> torch.Tensor:
        """Return the mean over the classes with a target or a prediction; 0 if there is none."""
        correct_K, false_K, _, missed_K = self._final_state()
        counted_K = correct_K + false_K + missed_K > 0
        scores_K = 2 * correct_K / (2 * correct_K + false_K + missed_K).clamp(min=1)
        return scores_K[counted_K].mean() if counted_K.any() else torch.zeros((), device=scores_K.device)


class _CountedByClass:
    """An update that counts images per class; torchmetrics' own update builds a matrix of all class pairs in every batch."""

    num_classes: int
    _update_state: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Count probabilities (B, K) against class numbers (B,)."""
        answers = preds.argmax(1)
        shown, predicted = self._images_of(target), self._images_of(answers)
        correct = self._images_of(target, (answers == target).long())
        missed, false = shown - correct, predicted - correct
        self._update_state(correct, false, len(target) - correct - missed - false, missed)

    def _images_of(self, classes: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Return sums by class, (K,), without waiting for the device as ``bincount`` does."""
        counts = torch.ones_like(classes) if counts is None else counts
        return counts.new_zeros(self.num_classes).scatter_add_(0, classes, counts)


class _MacroF1(_CountedByClass, MulticlassF1Score):  # type: ignore[misc]  # their updates have one signature
    pass


class _Recall(_CountedByClass, MulticlassRecall):  # type: ignore[misc]
    pass


class ConfusionCells(Metric):
    """The non-zero cells of the confusion matrix, int64 (M, 3): true class, predicted class, number of images.

    There are never more cells than images, whereas a matrix of 10,000 classes has a hundred million cells.
    """

    full_state_update = False
    codes: list[torch.Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("codes", default=[], dist_reduce_fx="cat")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Record probabilities (B, K) against class numbers (B,)."""
        self.codes.append(target.long() * self.num_classes + preds.argmax(1))

    def compute(self) -> torch.Tensor:
        """Return the cells in the order of the matrix, row by row."""
        if len(self.codes) == 0:
            return torch.zeros(0, 3, dtype=torch.int64)
        codes, images = torch.unique(dim_zero_cat(self.codes), return_counts=True)
        return torch.stack([codes // self.num_classes, codes % self.num_classes, images], dim=1)

    def plain(self, cells_M3: torch.Tensor) -> tuple[Matrix | None, Matrix | None]:
        """Convert the result of :meth:`compute` for files: to the whole matrix, or to the cells if there are many classes."""
        if self.num_classes > MOST_IN_MATRIX:
            return None, cells_M3.tolist()
        true, predicted, images = cells_M3.cpu().unbind(1)
        matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        matrix[true, predicted] = images
        return matrix.tolist(), None


def build_metrics(
    num_classes: int, *, multi_label: bool = False, own: Mapping[str, Metric] | None = None
) -> MetricCollection:
    """Build the metrics for single-label or multi-label data; all take probabilities (B, K).

    Single-label: accuracy, macro F1, recall of each class, confusion matrix, expected calibration error. ``acc`` counts images,
    not classes: accuracy is micro-averaged. A class without an image in the split does not enter the macro F1 (torchmetrics
    leaves out classes with neither targets nor predictions).

    Multi-label, with a threshold of one half where :func:`update_metrics` is given no others: exact match as ``acc``, macro F1
    over the same classes as above, micro F1, recall of each class, a confusion matrix for each class, mean average precision, and
    the calibration error over all pairs of an image and a class.

    Args:
        num_classes: Number of classes.
        multi_label: Whether an image may show several.
        own: User-supplied metrics by name, copied here; each takes probabilities and targets, and gives one number.

    Raises:
        UserError: A user-supplied metric has the name of another one, or is not a metric.
    """
    if multi_label:
        chosen: dict[str, Metric | MetricCollection] = {
            "acc": MultilabelExactMatch(num_classes, threshold=THRESHOLD),
            "f1_macro": _SeveralLabelsMacroF1(num_classes),
            "f1_micro": MultilabelF1Score(num_classes, threshold=THRESHOLD, average="micro"),
            "recall": MultilabelRecall(num_classes, threshold=THRESHOLD, average="none"),
            "confusion": MultilabelConfusionMatrix(num_classes, threshold=THRESHOLD),
            "map": MeanAveragePrecision(num_classes),
            "ece": BinaryCalibrationError(n_bins=_BINS, norm="l1"),
        }
        groups = [["acc"], ["f1_macro", "f1_micro", "recall"], ["confusion"], ["map"], ["ece"]]
    else:
        chosen = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "f1_macro": _MacroF1(num_classes, average="macro"),
            "recall": _Recall(num_classes, average="none"),
            "confusion": ConfusionCells(num_classes),
            "ece": MulticlassCalibrationError(num_classes, n_bins=_BINS, norm="l1"),
        }
        groups = [["acc"], ["f1_macro", "recall"], ["confusion"], ["ece"]]
    # the confusion metrics have their own state; groups are given here because torchmetrics would determine them at the first
    # update by comparing states, which would make the first batch of a run slower than the others
    collection = MetricCollection(chosen, compute_groups=groups)
    collection.add_metrics({"loss": MeanMetric()})
    for name, metric in (own or {}).items():
        if name in collection or "/" in name or not isinstance(metric, Metric):
            taken = ", ".join(map(str, collection))
            raise UserError(
                f"metrics[{name!r}]: must be a torchmetrics Metric under a name of its own. It is {type_in_words(metric)}; "
                f"taken: {taken}. Choose another name."
            )
        collection.add_metrics({name: metric.clone()})
        collection[name].reset()
    return collection


def update_metrics(
    metrics: MetricCollection,
    *,
    logits: torch.Tensor,
    targets: torch.Tensor,
    thresholds: Sequence[float] | None = None,
) -> None:
    """Update the metrics with one batch.

    Args:
        metrics: Metrics from :func:`build_metrics`.
        logits: Scores (B, K).
        targets: Class numbers (B,); zeros and ones (B, K) for multi-label.
        thresholds: For multi-label, the probability above which each class is predicted; None for one half.
    """
    logits = logits.float()
    decisions: torch.Tensor | None = None
    if targets.ndim == 2:
        probabilities, targets = logits.sigmoid(), targets.long()
        if thresholds is not None:
            # in double precision, as everywhere: a float32 threshold could be on the other side of a probability
            decisions = (probabilities.cpu().double() > torch.tensor(thresholds, dtype=torch.float64)).float()
            decisions = decisions.to(probabilities.device)
        losses = binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1)
    else:
        probabilities = logits.softmax(1)
        losses = cross_entropy(logits, targets, reduction="none")
    with _counting():
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            if name == "loss":
                metric.update(losses)
            elif decisions is not None and name in _OF_DECISIONS:
                metric.update(decisions, targets)
            else:
                metric.update(probabilities, targets)


def metrics_of_outputs(
    logits_NK: torch.Tensor,
    targets: torch.Tensor,
    *,
    own: Mapping[str, Metric] | None = None,
    thresholds: Sequence[float] | None = None,
) -> SplitMetrics:
    """Compute the metrics of a split whose logits every process of a run holds whole.

    Args:
        logits_NK: Scores of all images.
        targets: Class numbers (N,); zeros and ones (N, K) for multi-label.
        own: User-supplied metrics by name.
        thresholds: For multi-label, the probability above which each class is predicted; None for one half.
    """
    metrics = build_metrics(logits_NK.shape[1], multi_label=targets.ndim == 2, own=own)
    for metric in metrics.values():
        # else the images of all processes would be added
        metric.sync_on_compute = False
    update_metrics(metrics, logits=logits_NK, targets=targets, thresholds=thresholds)
    return split_metrics(metrics)


@contextmanager
def _counting() -> Iterator[None]:
    """Turn deterministic algorithms off during updates, because counts do not depend on the order of summation.

    With deterministic algorithms on, torchmetrics compares every image with every bin instead of counting.
    """
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)


def correct_predictions(logits_BK: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return which images are classified correctly, for multi-label in every label, bool (B,)."""
    if targets.ndim == 2:
        # a probability above one half is a logit above zero
        return ((logits_BK > 0) == targets.bool()).all(1)
    return logits_BK.argmax(1) == targets


def split_metrics(metrics: MetricCollection) -> SplitMetrics:
    """Return the values of metrics from :func:`build_metrics` as plain numbers."""
    values = metrics.compute()
    confusion = metrics["confusion"]
    whole, cells = values["confusion"].tolist(), None
    if isinstance(confusion, ConfusionCells):
        whole, cells = confusion.plain(values["confusion"])
    numbers = {name: float(value) for name, value in values.items() if value.numel() == 1}
    known = {"acc", "ece", "f1_macro", "f1_micro", "map", "recall", "loss", "confusion"}
    if several := [name for name in values if name not in known and name not in numbers]:
        raise UserError(
            f"metrics[{several[0]!r}]: must give one number. It gave {tuple(values[several[0]].shape)}. Average it."
        )
    return SplitMetrics(
        acc=numbers["acc"],
        ece=numbers["ece"],
        f1_macro=numbers["f1_macro"],
        f1_micro=numbers.get("f1_micro"),
        map=numbers.get("map"),
        recall=tuple(values["recall"].tolist()),
        loss=numbers["loss"],
        confusion=whole,
        confusion_cells=cells,
        own={name: value for name, value in numbers.items() if name not in known} or None,
    )
