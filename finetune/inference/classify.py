"""Simple classifiers on features: nearest neighbours, and regularised logistic regression, tuned on the training images alone."""

import time
import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from finetune.data.index import Index
from finetune.data.splits import make_folds, make_splits
from finetune.errors import UserError
from finetune.inference.embeddings import Embeddings, Rows
from finetune.inference.search import nearest

# N = images, D = features, K = classes

METHODS = ("knn", "logistic")
FOLDS = 5
# inverse strengths of the L2 penalty, the strongest first, and numbers of neighbours, that are tried
STRENGTHS = tuple(10.0**power for power in range(-5, 4))
# weaker penalties are not tried after so many that were worse than the best: they take longest
_PATIENCE = 2
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
_STEPS = 2000
# largest entry of the gradient at which a fit has ended
_SOLVED = 1e-6
# the least probability a class is given, so that a loss stays finite
_LEAST = 1e-6

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A classifier with what was tried for it.

    Args:
        method: ``knn`` or ``logistic``.
        chosen: The setting, by its name: ``k``, or ``C`` (inverse strength).
        tried: Cross-validated accuracy and loss of each setting.
        steps: Iterations of the last fit.
        arrays: What it consists of.
        remarks: Sentences for the user.
    """

    method: str
    chosen: dict[str, float]
    tried: list[dict[str, float]]
    steps: int
    arrays: dict[str, npt.NDArray[Any]]
    remarks: list[str] = field(default_factory=list)


class Classifies(Protocol):
    """Probabilities of all classes for features."""

    fitted: Fitted

    def shares(self, features: npt.NDArray[np.floating[Any]]) -> Shares:
        """Probabilities (N, K)."""
        ...


def split_index(embeddings: Embeddings, *, seed: int = 0) -> tuple[Index, Rows, list[str]]:
    """The labelled images as a data set with train, validation and test images; missing splits are made.

    Returns:
        The table of samples, the row of the embeddings of each, and sentences about what was left out or made.

    Raises:
        UserError: There are no labels, or a split would be empty.
    """
    embeddings.need_labels("classify")
    rows, notes = embeddings.labelled(), []
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
) -> "Classifies":
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


class NearestNeighbours:
    """Votes of the k nearest training images, each weighed by ``exp`` of its distance as a share of the k-th one's.

    k is chosen by leaving each training image out once: the most accurate one, the smaller of equals.

    Args:
        features_ND: Of the training images.
        targets: int64 (N,).
        classes: Number of classes.
        metric: ``cosine`` or ``l2``.
    """

    def __init__(
        self, features_ND: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.int64], *, classes: int, metric: str
    ) -> None:
        self._features, self._targets, self._classes, self._metric = features_ND, targets, classes, metric
        ks = [k for k in NEIGHBOURS if k < len(targets)]
        found = nearest(features_ND, features_ND, max(ks), metric=metric, leave_out=np.arange(len(targets)))
        tried = []
        for k in ks:
            shares = self._vote(found.rows[:, :k], found.distances[:, :k])
            tried.append({"k": k, **_figures(shares, targets)})
        best = max(tried, key=lambda row: (row["acc"], -row["k"]))
        self._k = int(best["k"])
        arrays = {"features": np.asarray(features_ND), "targets": targets, "k": np.array([self._k])}
        self.fitted = Fitted(method="knn", chosen={"k": self._k}, tried=tried, steps=0, arrays=arrays)

    def shares(self, features: npt.NDArray[np.floating[Any]]) -> Shares:
        """Probabilities (N, K): shares of the votes."""
        found = nearest(self._features, features, self._k, metric=self._metric)
        return self._vote(found.rows, found.distances)

    def _vote(self, rows: Rows, distances: npt.NDArray[np.float64]) -> Shares:
        far = distances[:, -1:]
        weights = np.exp(-distances / np.where(far > 0, far, 1))
        votes = np.zeros((len(rows), self._classes))
        np.add.at(votes, (np.arange(len(rows))[:, None], self._targets[rows]), weights)
        return _finite(votes / votes.sum(1, keepdims=True))


class Logistic:
    """Multinomial logistic regression with an L2 penalty on standardised features, by scikit-learn.

    The strength is the one with the least cross-validated loss; the final fit is on all training images.

    Args:
        features_ND: Of the training images.
        targets: int64 (N,).
        classes: Number of classes.
        folds: int64 (N,), fold of each image.
    """

    def __init__(
        self,
        features_ND: npt.NDArray[np.floating[Any]],
        targets: npt.NDArray[np.int64],
        *,
        classes: int,
        folds: npt.NDArray[np.int64],
    ) -> None:
        self._classes = classes
        values = np.asarray(features_ND, np.float32)
        parts = [folds != fold for fold in np.unique(folds)]
        paths = {at: _Path(values[part], targets[part]) for at, part in enumerate(parts) if _several(targets[part])}
        tried: list[dict[str, float]] = []
        for strength in STRENGTHS:
            held_out = np.full((len(targets), classes), 1.0 / classes)
            for at, path in paths.items():
                path.fit(strength)
                held_out[~parts[at]] = self._probabilities(path.model, values[~parts[at]])
            tried.append({"C": strength, **_figures(held_out, targets)})
            best = min(tried, key=lambda row: (row["loss"], row["C"]))
            if len(tried) - tried.index(best) > _PATIENCE:
                break
        remarks = []
        if best["C"] in (STRENGTHS[0], STRENGTHS[-1]):
            remarks.append(f"logistic: the chosen C={best['C']:g} is at the end of what was tried.")
        whole = _Path(values.astype(np.float64), targets)
        for strength in (row["C"] for row in tried if row["C"] <= best["C"]):
            # what is handed over is solved further than what is only compared
            if not whole.fit(strength, tolerance=_SOLVED if strength == best["C"] else None):
                remarks.append(f"logistic: the fit with C={strength:g} stopped at {_STEPS} steps.")
        self._model = whole.model
        scaler, regression = self._model[0], self._model[-1]
        # the scaling folded in: logits are features @ weight.T + bias
        weight, bias = (
            regression.coef_ / scaler.scale_,
            regression.intercept_ - regression.coef_ @ (scaler.mean_ / scaler.scale_),
        )
        if len(weight) == 1:  # of two classes scikit-learn keeps the difference
            weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
        self.weight = np.zeros((classes, values.shape[1]))
        # a class that was never seen stays out of reach
        self.bias = np.full(classes, float(bias.min()) - 1e4)
        self.weight[regression.classes_], self.bias[regression.classes_] = weight, bias
        arrays = {"weight": self.weight, "bias": self.bias}
        steps = int(np.max(regression.n_iter_))
        self.fitted = Fitted(
            method="logistic", chosen={"C": best["C"]}, tried=tried, steps=steps, arrays=arrays, remarks=remarks
        )

    def shares(self, features: npt.NDArray[np.floating[Any]]) -> Shares:
        """Probabilities (N, K)."""
        return _finite(self._probabilities(self._model, np.asarray(features, np.float64)))

    def _probabilities(self, model: Any, values: npt.NDArray[np.floating[Any]]) -> Shares:
        shares = np.zeros((len(values), self._classes))
        shares[:, model[-1].classes_] = model.predict_proba(values)
        return shares


class _Path:
    """Fits from the strongest penalty to the weakest, each starting where the one before ended."""

    def __init__(self, values: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.int64]) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._values, self._targets = values, targets
        self.model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_STEPS, warm_start=True))

    def fit(self, strength: float, *, tolerance: float | None = None) -> bool:
        """Fit; whether it converged."""
        from sklearn.exceptions import ConvergenceWarning

        self.model[-1].set_params(C=strength, **({} if tolerance is None else {"tol": tolerance}))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            self.model.fit(self._values, self._targets)
        return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _several(targets: npt.NDArray[np.int64]) -> bool:
    return len(np.unique(targets)) > 1


def _figures(shares: Shares, targets: npt.NDArray[np.int64]) -> dict[str, float]:
    likely = _finite(shares)[np.arange(len(targets)), targets]
    return {"acc": float((shares.argmax(1) == targets).mean()), "loss": float(-np.log(likely).mean())}


def _finite(shares: Shares) -> Shares:
    """No class quite impossible, sums still one."""
    lifted = np.maximum(shares, _LEAST)
    scaled: Shares = lifted / lifted.sum(1, keepdims=True)
    return scaled


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A classifier's metrics.

    Args:
        classifier: Fitted.
        metrics: Of ``val`` and ``test``, as in ``results.json``.
        test_rows: Rows of the index.
        test_shares: Their probabilities.
        seconds: Of choosing, fitting and testing.
    """

    classifier: Classifies
    metrics: dict[str, dict[str, Any]]
    test_rows: Rows
    test_shares: Shares
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
