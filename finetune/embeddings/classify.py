"""Simple classifiers on features, tuned on the training images alone and measured as a trained run is."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.index import Index
from finetune.data.splits import make_folds, make_splits
from finetune.embeddings.embeddings import Embeddings, Rows
from finetune.embeddings.fitted import Classifies, Probabilities
from finetune.embeddings.knn import NearestNeighbours
from finetune.embeddings.logistic import Logistic
from finetune.errors import UserError

# N = images, D = features

METHODS = ("knn", "logistic")
FOLDS = 5


def split_index(embeddings: Embeddings, *, seed: int = 0) -> tuple[Index, Rows, list[str]]:
    """The labelled images as a data set with train, validation and test images; missing splits are made.

    Returns:
        The table of samples, the row of the embeddings of each, and sentences about what was left out or made.

    Raises:
        UserError: There are no labels, or a split would be empty.
    """
    embeddings.require_labels("classify")
    rows, notes = embeddings.labelled_rows(), []
    if len(rows) < len(embeddings):
        notes.append(f"{len(embeddings) - len(rows)} images without a label are left out.")
    splits = np.maximum(embeddings.splits[rows], 0).astype(np.int8)
    targets, content = embeddings.labels[rows].astype(np.int64), embeddings.content[rows]
    missing = {name: not (splits == number).any() for number, name in ((1, "val"), (2, "test"))}
    if any(missing.values()):
        train = np.flatnonzero(splits == 0)
        splits[train] = make_splits(
            targets=targets[train],
            content=content[train],
            seed=seed,
            val_fraction=0.15 * missing["val"],
            test_fraction=0.15 * missing["test"],
        )
        made = " and ".join(name for name, is_missing in missing.items() if is_missing)
        notes.append(f"{made}: made of the training images, stratified, seed {seed}.")
    index = Index(
        classes=embeddings.classes,
        root="",
        paths=embeddings.paths.take(rows),
        targets=targets,
        splits=splits,
        content=content,
    )
    for name, count in index.images().items():
        if not count:
            raise UserError(f"EMBEDDINGS: classify needs images to train, validate and test. {name} has none.")
    absent = [name for name, count in zip(index.classes, index.counts()["train"], strict=True) if not count]
    if absent:
        notes.append(f"without a training image, so never predicted: {', '.join(absent)}.")
    return index, rows, notes


def fit(
    method: str,
    features: npt.NDArray[np.floating[Any]],
    index: Index,
    *,
    metric: str = "cosine",
    seed: int = 0,
) -> Classifies:
    """A classifier fitted on the training images, its setting chosen by cross-validation among them.

    Args:
        method: ``knn`` or ``logistic``.
        features: Of all rows of the index (N, D).
        index: Targets, splits and contents; copies of an image lie in one fold.
        metric: Of ``knn``.
        seed: Of the folds.

    Raises:
        UserError: There is no such method, or the training images show one class alone.
    """
    train = index.rows("train")
    targets = index.targets[train].astype(np.int64)
    if len(np.unique(targets)) < 2:
        raise UserError("EMBEDDINGS: classify needs training images of two classes at least.")
    if method == "knn":
        return NearestNeighbours(features[train], targets, classes=len(index.classes), metric=metric)
    if method == "logistic":
        content = index.content[train]
        folds = make_folds(targets=targets, content=content, seed=seed, folds=min(FOLDS, len(train)))
        return Logistic(features[train], targets, classes=len(index.classes), folds=folds)
    raise UserError(f"--method {method}: must be one of {', '.join(METHODS)}, or all.")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A classifier's metrics.

    Args:
        classifier: FittedClassifier.
        metrics: Of ``val`` and ``test``, as in ``results.json``.
        test_rows: Rows of the index.
        test_shares: Their probabilities.
        seconds: Of choosing, fitting and testing.
    """

    classifier: Classifies
    metrics: dict[str, dict[str, Any]]
    test_rows: Rows
    test_shares: Probabilities
    seconds: float


def judge(
    method: str, features: npt.NDArray[np.floating[Any]], index: Index, *, metric: str = "cosine", seed: int = 0
) -> Judged:
    """Fit on the training images and measure on the others, by the metrics of a trained run.

    Raises:
        UserError: As :func:`fit`.
    """
    import torch

    from finetune.metrics import build_metrics, plain_metrics, update_metrics

    began = time.monotonic()
    classifier = fit(method, features, index, metric=metric, seed=seed)
    metrics, shares = {}, np.zeros((0, 0))
    for split in ("val", "test"):
        rows = index.rows(split)
        shares = classifier.shares(features[rows])
        measured = build_metrics(len(index.classes))
        targets = torch.from_numpy(np.asarray(index.targets, np.int64)[rows])
        update_metrics(measured, logits=torch.from_numpy(np.log(shares)), targets=targets)
        metrics[split] = plain_metrics(measured)
    return Judged(
        classifier=classifier,
        metrics=metrics,
        test_rows=index.rows("test"),
        test_shares=shares,
        seconds=round(time.monotonic() - began, 3),
    )
