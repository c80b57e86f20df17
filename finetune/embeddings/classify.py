"""Simple classifiers on features, tuned on the training images only and measured with the metrics of a trained run."""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.index import Index
from finetune.data.splits import make_folds, make_splits
from finetune.embeddings.embeddings import Embeddings, EmbeddingsError, Rows
from finetune.embeddings.files import Features
from finetune.errors import UserError
from finetune.results import SplitMetrics
from finetune.split_settings import SplitSettings

# N = images, D = features, K = classes

METHODS = ("knn", "logistic")
FOLDS = 5
# numbers of neighbours to try
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
# inverse strengths of the L2 penalty to try, strongest penalty first
STRENGTHS = tuple(10.0**power for power in range(-5, 4))
# weaker penalties take longest; they are not tried once this many were worse than the best
_PATIENCE = 2
_MAX_STEPS = 2000
# the final fit ends when no entry of the gradient exceeds this; the fits that are only compared stop earlier
_SOLVED = 1e-6
# smallest probability given to a class, so that the loss stays finite
_LEAST = 1e-6

Probabilities = npt.NDArray[np.float64]
Targets = npt.NDArray[np.int64]


def split_index(embeddings: Embeddings, *, seed: int = 0) -> tuple[Index, Rows, list[str]]:
    """Build a data set with training, validation and test images from the labelled images; create missing splits.

    Returns:
        The index of the images, each image's row in the embeddings, and sentences about what was left out or created.

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
            split=SplitSettings(seed=seed, val_fraction=0.15 * missing["val"], test_fraction=0.15 * missing["test"]),
        )
        created = " and ".join(name for name, is_missing in missing.items() if is_missing)
        notes.append(f"{created}: split off the training images, stratified, seed {seed}.")
    index = Index(
        classes=embeddings.classes,
        root="",
        paths=embeddings.paths.take(rows),
        targets=targets,
        splits=splits,
        content=content,
    )
    for name, count in index.split_sizes().items():
        if not count:
            raise EmbeddingsError(f"classify needs images to train, validate and test. {name} has none.")
    absent = [name for name, count in zip(index.classes, index.counts()["train"], strict=True) if not count]
    if absent:
        notes.append(f"without a training image, so never predicted: {', '.join(absent)}.")
    return index, rows, notes


@dataclass(frozen=True, kw_only=True)
class FittedClassifier:
    """A fitted scikit-learn classifier, with the settings that were tried.

    Args:
        method: ``knn`` or ``logistic``.
        model: Fitted model; its classes are positions in the list of all class names.
        num_classes: Number of all classes, including those without a training image.
        chosen: The chosen setting by name: ``k``, or ``C`` (inverse strength of the penalty).
        tried: Cross-validated accuracy and loss of each setting.
        arrays: Arrays that define the classifier.
        steps: Iterations of the final fit.
        remarks: Sentences for the user.
    """

    method: str
    model: Any
    num_classes: int
    chosen: dict[str, float]
    tried: list[dict[str, float]]
    arrays: dict[str, npt.NDArray[Any]]
    steps: int = 0
    remarks: list[str] = field(default_factory=list)

    def probabilities(self, features_ND: Features) -> Probabilities:
        """Return the probabilities (N, K) of all classes."""
        return _probabilities(self.model, np.asarray(features_ND, np.float64), self.num_classes)


def fit(method: str, features: Features, index: Index, *, metric: str = "cosine", seed: int = 0) -> FittedClassifier:
    """Fit a classifier on the training images; choose its setting by cross-validation among them.

    Args:
        method: ``knn`` or ``logistic``.
        features: Features (N, D) of all rows of the index.
        index: Targets, splits and content hashes; copies of an image are put into the same fold.
        metric: Distance of ``knn``: ``cosine`` or ``l2``.
        seed: Seed of the folds.

    Raises:
        UserError: There is no such method, or the training images show only one class.
    """
    train = index.rows("train")
    targets = index.targets[train].astype(np.int64)
    if len(np.unique(targets)) < 2:
        raise EmbeddingsError("classify needs training images of at least two classes.")
    if method == "knn":
        return _fit_knn(features[train], targets, num_classes=len(index.classes), metric=metric)
    if method == "logistic":
        content = index.content[train]
        folds = make_folds(targets=targets, content=content, seed=seed, folds=min(FOLDS, len(train)))
        return _fit_logistic(features[train], targets, num_classes=len(index.classes), folds=folds)
    raise UserError(f"--method {method}: must be one of {', '.join(METHODS)}, or all.")


def _fit_knn(features_ND: Features, targets: Targets, *, num_classes: int, metric: str) -> FittedClassifier:
    """Choose the most accurate k by leave-one-out on the training images; the smaller one of equals."""
    from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

    values = np.asarray(features_ND, np.float64)
    distance = {"cosine": "cosine", "l2": "euclidean"}[metric]
    ks = [k for k in NEIGHBOURS if k < len(targets)]
    search = NearestNeighbors(n_neighbors=max(ks), metric=distance, algorithm="brute").fit(values)
    # called without an argument, so that no image is its own neighbour
    graph = search.kneighbors_graph(mode="distance")
    tried = []
    for k in ks:
        left_out = KNeighborsClassifier(k, weights=_vote_weights, metric="precomputed").fit(graph, targets)
        tried.append({"k": k, **_score(_probabilities(left_out, graph, num_classes), targets)})
    best = max(tried, key=lambda row: (row["acc"], -row["k"]))
    k = int(best["k"])
    model = KNeighborsClassifier(k, weights=_vote_weights, metric=distance, algorithm="brute").fit(values, targets)
    arrays = {"features": np.asarray(features_ND), "targets": targets, "k": np.array([k])}
    return FittedClassifier(
        method="knn", model=model, num_classes=num_classes, chosen={"k": k}, tried=tried, arrays=arrays
    )


def _vote_weights(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weigh each neighbour by ``exp(-d)``, where d is its distance as a fraction of the farthest neighbour's."""
    farthest = distances[:, -1:]
    weights: npt.NDArray[np.float64] = np.exp(-distances / np.where(farthest > 0, farthest, 1))
    return weights


def _fit_logistic(
    features_ND: Features, targets: Targets, *, num_classes: int, folds: npt.NDArray[np.int64]
) -> FittedClassifier:
    """Fit a multinomial regression with an L2 penalty on standardised features; choose the strength of lowest loss."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_STEPS))
    values, remarks, tried = np.asarray(features_ND, np.float32), [], list[dict[str, float]]()
    best = {"C": 1.0}
    if any(len(np.unique(targets[folds != fold])) < 2 for fold in np.unique(folds)):
        remarks.append("logistic: too few training images to choose a strength; C=1.")
    else:
        for strength in STRENGTHS:
            model.set_params(logisticregression__C=strength)
            with warnings.catch_warnings():
                # an image whose class is absent from its training folds counts as wrong; none of these fits is used further
                warnings.filterwarnings("ignore", message="Number of classes in training fold")
                warnings.simplefilter("ignore", ConvergenceWarning)
                held_out = cross_val_predict(model, values, targets, cv=PredefinedSplit(folds), method="predict_proba")
            all_classes = np.zeros((len(targets), num_classes))
            all_classes[:, np.unique(targets)] = held_out
            tried.append({"C": strength, **_score(_floored(all_classes), targets)})
            best = min(tried, key=lambda row: (row["loss"], row["C"]))
            if len(tried) - tried.index(best) > _PATIENCE:
                break
        if best["C"] in (STRENGTHS[0], STRENGTHS[-1]):
            remarks.append(f"logistic: the chosen C={best['C']:g} is at the edge of the values tried.")
    model.set_params(logisticregression__C=best["C"], logisticregression__tol=_SOLVED)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(np.asarray(features_ND, np.float64), targets)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        remarks.append(f"logistic: the fit with C={best['C']:g} stopped at {_MAX_STEPS} steps.")
    return FittedClassifier(
        method="logistic",
        model=model,
        num_classes=num_classes,
        chosen={"C": best["C"]},
        tried=tried,
        arrays=_linear_layer(model, num_classes),
        steps=int(np.max(model[-1].n_iter_)),
        remarks=remarks,
    )


def _linear_layer(model: Any, num_classes: int) -> dict[str, npt.NDArray[np.float64]]:
    """Fold the scaling into one layer: logits are ``features @ weight.T + bias``."""
    scaler, regression = model[0], model[-1]
    weight = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weight @ scaler.mean_
    if len(weight) == 1:  # for two classes scikit-learn stores only the difference
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    all_weights = np.zeros((num_classes, weight.shape[1]))
    # a class without a training image is never predicted
    all_biases = np.full(num_classes, float(bias.min()) - 1e4)
    all_weights[regression.classes_], all_biases[regression.classes_] = weight, bias
    return {"weight": all_weights, "bias": all_biases}


def _probabilities(model: Any, values: Any, num_classes: int) -> Probabilities:
    probabilities = np.zeros((values.shape[0], num_classes))
    probabilities[:, model.classes_] = model.predict_proba(values)
    return _floored(probabilities)


def _floored(probabilities: Probabilities) -> Probabilities:
    """Raise every probability to the minimum and renormalise the sums to one."""
    lifted = np.maximum(probabilities, _LEAST)
    scaled: Probabilities = lifted / lifted.sum(1, keepdims=True)
    return scaled


def _score(probabilities: Probabilities, targets: Targets) -> dict[str, float]:
    likely = probabilities[np.arange(len(targets)), targets]
    return {"acc": float((probabilities.argmax(1) == targets).mean()), "loss": float(-np.log(likely).mean())}


@dataclass(frozen=True, kw_only=True)
class ClassifierResult:
    """A fitted classifier with its metrics.

    Args:
        classifier: Classifier fitted on the training images.
        metrics: Metrics of ``val`` and ``test``, as in ``results.json``.
        test_rows: Rows of the test images in the index.
        test_probabilities: Probabilities (N, K) of the test images.
        seconds: Time for choosing, fitting and testing, in seconds.
    """

    classifier: FittedClassifier
    metrics: dict[str, SplitMetrics]
    test_rows: Rows
    test_probabilities: Probabilities
    seconds: float


def fit_and_test(
    method: str, features: Features, index: Index, *, metric: str = "cosine", seed: int = 0
) -> ClassifierResult:
    """Fit on the training images and measure on validation and test images, with the metrics of a trained run.

    Raises:
        UserError: See :func:`fit`.
    """
    import torch

    from finetune.metrics import build_metrics, split_metrics, update_metrics

    began = time.monotonic()
    classifier = fit(method, features, index, metric=metric, seed=seed)
    metrics, probabilities = {}, np.zeros((0, 0))
    for split in ("val", "test"):
        rows = index.rows(split)
        probabilities = classifier.probabilities(features[rows])
        measured = build_metrics(len(index.classes))
        targets = torch.from_numpy(np.asarray(index.targets, np.int64)[rows])
        update_metrics(measured, logits=torch.from_numpy(np.log(probabilities)), targets=targets)
        metrics[split] = split_metrics(measured)
    return ClassifierResult(
        classifier=classifier,
        metrics=metrics,
        test_rows=index.rows("test"),
        test_probabilities=probabilities,
        seconds=round(time.monotonic() - began, 3),
    )
