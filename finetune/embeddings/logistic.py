"""Logistic regression on features, the strength of its penalty chosen by cross-validation."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.embeddings.fitted import FittedClassifier, Probabilities, figures, finite

# N = images, D = features, K = classes

# inverse strengths of the L2 penalty that are tried, the strongest first
STRENGTHS = tuple(10.0**power for power in range(-5, 4))
# weaker penalties are not tried after so many that were worse than the best: they take longest
_PATIENCE = 2
_STEPS = 2000
# largest entry of the gradient at which a fit has ended
_SOLVED = 1e-6


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
            tried.append({"C": strength, **figures(held_out, targets)})
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
        self.fitted = FittedClassifier(
            method="logistic", chosen={"C": best["C"]}, tried=tried, steps=steps, arrays=arrays, remarks=remarks
        )

    def shares(self, features: npt.NDArray[np.floating[Any]]) -> Probabilities:
        """Probabilities (N, K)."""
        return finite(self._probabilities(self._model, np.asarray(features, np.float64)))

    def _probabilities(self, model: Any, values: npt.NDArray[np.floating[Any]]) -> Probabilities:
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
