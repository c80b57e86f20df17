"""Test a trained model on a data set, aligning classes by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.counted import counted
from finetune.data.datamodule import ImageDataModule
from finetune.data.image_source import Source
from finetune.data.sampling import Rows
from finetune.errors import UserError, shortened
from finetune.html import html_table
from finetune.metrics import build_metrics, split_metrics, update_metrics
from finetune.models.batch_norm_folding import fast_features
from finetune.models.chunks import run_in_chunks
from finetune.models.classifier import Classifier
from finetune.plain import Json, to_plain
from finetune.results import SplitMetrics


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The test of a model on a data set.

    Args:
        metrics: Metrics, as in ``results.json``.
        images: Number of images.
        missing_classes: Classes of the model of which the data has no image.
        known: Share of the images that are like the training images (``unknown_score`` at most 1); far below the accepted share
            of the run, the data has drifted. None where the model cannot tell.
    """

    metrics: SplitMetrics
    images: int
    missing_classes: tuple[str, ...]
    known: float | None = None

    def to_plain(self) -> dict[str, Json]:
        """Return the metrics as JSON values, with the counts behind them."""
        return {
            **to_plain(self.metrics),
            "images": self.images,
            "missing_classes": list(self.missing_classes),
            "known": self.known,
        }

    def __repr__(self) -> str:
        """Return the main metrics; ``metrics`` has the rest."""
        missing = f"; no image of {shortened(self.missing_classes)}" if self.missing_classes else ""
        return f"Evaluation({counted(self.images, 'image')}: {self.metrics.in_words()}{missing})"

    def _repr_html_(self) -> str:
        rows = sorted(self.metrics.scalars().items())
        return html_table(["metric", "value"], rows, caption=counted(self.images, "image"))


def class_positions(
    model: Sequence[str], data: Sequence[str], *, name: str = "data"
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the position of each of the data's classes in the model's class list.

    Args:
        model: Classes of the model.
        data: Classes of the data.
        name: What the user calls the data, for the message.

    Raises:
        UserError: The data has a class that the model does not know.

    >>> class_positions(["cat", "dog"], ["dog"]).tolist()
    [1]
    """
    unknown = [name for name in data if name not in model]
    if unknown:
        raise UserError(
            f"{name}: classes that the model was not trained on: {shortened(unknown)}. It knows {shortened(list(model))}. "
            "Rename or remove these classes."
        )
    return np.array([list(model).index(name) for name in data], dtype=np.int64)


def _check_labels(classifier: Classifier, source: Source) -> None:
    if source.index.multi_label == classifier.multi_label:
        return
    kinds = {True: "several labels", False: "one label"}
    raise UserError(
        f"data: has {kinds[source.index.multi_label]} per image. The model was trained for {kinds[classifier.multi_label]}. "
        "Several come from a table: data=manifest data.path=FILE with data.label_separator or data.label_columns."
    )


@torch.inference_mode()
def evaluate(
    classifier: Classifier, source: Source, rows: Rows, *, num_workers: int | None = None, name: str = "data"
) -> Evaluation:
    """Compute metrics on the given rows of a source.

    Args:
        classifier: Trained model in evaluation mode.
        source: Images and labels; its classes may be fewer than the model's, or in another order.
        rows: Rows of the source's index.
        num_workers: Number of loader processes; None chooses automatically.
        name: What the user calls the data, for messages.

    Returns:
        The metrics, the number of images, the names of the classes without one, and the share of images that are known.

    Raises:
        UserError: The data has a class that the model does not know, or single-label data meets a multi-label model or the
            reverse.
    """
    positions = torch.from_numpy(class_positions(classifier.classes, source.index.classes, name=name))
    data = ImageDataModule(source=source, spec=classifier.input_spec, num_workers=num_workers)
    _check_labels(classifier, source)
    metrics = build_metrics(len(classifier.classes), multi_label=classifier.multi_label)
    class_counts = torch.zeros(len(classifier.classes), dtype=torch.int64)
    embed, known = fast_features(classifier), 0
    thresholds = classifier.thresholds if classifier.multi_label else None
    device = next(classifier.parameters()).device
    for batch in data.rows_dataloader(rows):
        if classifier.multi_label:
            targets = torch.zeros(len(batch.targets), len(class_counts), dtype=torch.int64)
            targets[:, positions] = batch.targets.long()
            class_counts += targets.sum(0)
        else:
            targets = positions[batch.targets]
            class_counts += torch.bincount(targets, minlength=len(class_counts))
        features_BD = run_in_chunks(embed, batch.images.to(device))
        update_metrics(metrics, logits=classifier.logits(features_BD).cpu(), targets=targets, thresholds=thresholds)
        if classifier.unknown is not None:
            known += int((classifier.unknown(features_BD) <= 1).sum())
    missing = [name for name, count in zip(classifier.classes, class_counts.tolist(), strict=True) if count == 0]
    return Evaluation(
        metrics=split_metrics(metrics),
        images=len(rows),
        missing_classes=tuple(missing),
        known=None if classifier.unknown is None else known / len(rows),
    )


def evaluate_split(classifier: Classifier, source: Source, split: str) -> Evaluation:
    """Compute metrics on a split, or on ``all`` images.

    Raises:
        UserError: The split is empty, or the data does not fit the model.
    """
    rows = np.arange(len(source.index)) if split == "all" else source.index.rows(split)
    if not len(rows):
        raise UserError(
            f"split={split!r}: has no images. Counts: {source.index.split_sizes()}. Choose another, or all."
        )
    return evaluate(classifier, source, rows)
