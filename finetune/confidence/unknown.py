"""Images of no known class: how far an image's features are from those of the training images of every class.

The score is the Mahalanobis distance to the nearest class mean (Lee et al. 2018) of features scaled to length one (Mueller and
Hein 2025, Mahalanobis++), under one covariance of all classes, shrunk by Ledoit and Wolf's rule. Of it the largest :data:`RANK`
directions are kept, and the mean variance of all others, so that a few hundred kilobytes hold it. It is divided by the distance
within which a stated share of the validation images lies: above 1 an image is unlike the training images. The file holds four
bytes for each feature and each direction and class: 0.15 MB for ResNet-18 and ten classes, 0.6 MB for ResNet-50.

``tests/benchmarks/unknown_scores.py`` compares it with other scores, and has the table by which it was chosen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# B = batch, N = images, D = features, K = classes with training images, R = directions

Floats = npt.NDArray[np.floating]

RANK = 64
# training images of the fit, spread evenly over the classes, and how many of a class at least
MOST_IMAGES, FEWEST_OF_A_CLASS = 1000, 5
# validation images beyond the threshold; with fewer, one image more or less would move it far
_BEYOND = 2
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class UnknownScore:
    """The parameters of the score, float32; the threshold is part of them.

    Args:
        centre_D: Mean of the class means; the other parameters apply to features and means relative to it, which preserves
            precision.
        precision: Precision of small directions.
        basis_DR: Directions of large variance, each scaled by the root of the precision that it lacks.
        linear_DK: Twice the precision times the mean of each class.
        constant_K: Each mean's own squared length under the precision.
    """

    centre_D: Tensor
    precision: Tensor
    basis_DR: Tensor
    linear_DK: Tensor
    constant_K: Tensor

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Return the scores (B,), float32: above 1 an image is unlike the training images."""
        device = features_BD.device
        return unknown_scores(features_BD, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in UNKNOWN_PARAMETERS}


def unknown_scores(
    features_BD: Tensor, *, centre_D: Tensor, precision: Tensor, basis_DR: Tensor, linear_DK: Tensor, constant_K: Tensor
) -> Tensor:
    """Return the scores (B,) of features; the arguments are those of :class:`UnknownScore`."""
    unit_BD = features_BD.float()
    x_BD = unit_BD / unit_BD.square().sum(1, keepdim=True).sqrt().clamp_min(_TINY) - centre_D
    own_B = precision * x_BD.square().sum(1) - (x_BD @ basis_DR).square().sum(1)
    return (own_B + (constant_K - x_BD @ linear_DK).amin(1)).clamp_min(0).sqrt()


def score_problems(tensors: Mapping[str, Tensor], *, features: int, classes: int) -> list[str]:
    """Return the problems with the parameters in a file, which somebody else may have written.

    Args:
        tensors: Tensors of the file.
        features: Number of features.
        classes: Number of classes.
    """
    axes = {"centre_D": 1, "precision": 0, "basis_DR": 2, "linear_DK": 2, "constant_K": 1}
    if set(tensors) != set(axes):
        return [f"needs the tensors {', '.join(sorted(axes))}"]
    problems = [
        f"{name}: must be finite float32 with {axis} axes"
        for name, axis in axes.items()
        if tensors[name].dtype != torch.float32 or tensors[name].ndim != axis or not tensors[name].isfinite().all()
    ]
    if problems:
        return problems
    centre, basis, linear, constant = (
        tensors[name].shape for name in ("centre_D", "basis_DR", "linear_DK", "constant_K")
    )
    if not (centre[0] == basis[0] == linear[0] == features and 1 <= basis[1] <= features and linear[1:] == constant):
        return [
            f"centre_D, basis_DR, linear_DK and constant_K: must be of {features} features, and of the same classes"
        ]
    return [] if 1 <= constant[0] <= classes else [f"constant_K: must be of 1 to {classes} classes"]


# names of the parameters, and of their tensors in files
UNKNOWN_PARAMETERS = tuple(field.name for field in fields(UnknownScore))


@dataclass(frozen=True, kw_only=True)
class UnknownFit:
    """A score fitted on training images, with its threshold from validation images.

    Args:
        score: The score; None if the images support none.
        threshold: Mahalanobis distance by which it is divided; None likewise.
        why_not: Why the images support none; empty if they do.
    """

    score: UnknownScore | None
    threshold: float | None
    why_not: str


def fit_unknown(train_ND: Floats, targets_N: npt.NDArray[np.integer], val_ND: Floats, *, accept: float) -> UnknownFit:
    """Fit the score on training images, and its threshold on validation images.

    The threshold is midway between the distances of the validation images at rank ``ceil((N + 1) * accept)`` and at the next: at
    least so large a share of other images of the same kind is expected within it (split conformal prediction), and no validation
    image lies on it, where the last digits of another runtime would decide. There is none if fewer than two validation images
    would lie beyond.

    Args:
        train_ND: Features of training images.
        targets_N: Their classes.
        val_ND: Features of validation images.
        accept: Share of the validation images that the threshold accepts.
    """
    # rounded, because 2 / (1 - 0.9) is a little above 20
    needed = math.ceil(round(_BEYOND / (1 - accept), 6))
    if len(val_ND) < needed:
        return _unsupported(
            f"it takes {needed:,} validation images to accept {accept:.4g} of them, and there are {len(val_ND):,}"
        )
    classes_K, targets_N = np.unique(targets_N, return_inverse=True)
    unit_ND = unit_length(train_ND)
    means_KD = np.stack([unit_ND[targets_N == number].mean(0) for number in range(len(classes_K))])
    gaussian = _fit_covariance(unit_ND - means_KD[targets_N])
    if gaussian is None:
        return _unsupported("the features of the training images of a class do not differ")
    directions_RD, variances_R, rest = gaussian
    precision_DD = _Precision(directions_RD, 1 / variances_R, 1 / rest)
    distances_N = np.sqrt(precision_DD.squared_distances(unit_length(val_ND), means_KD).min(1))
    rank = math.ceil(round((len(val_ND) + 1) * accept, 6))
    threshold = float(np.sort(distances_N)[rank - 1 : rank + 1].mean())
    if threshold <= 0:
        return _unsupported("the features of the validation images do not differ from the class means")
    centre_D = means_KD.mean(0)
    from_there_KD = means_KD - centre_D
    weighted_KD = precision_DD.times(from_there_KD)
    lacking_R = np.maximum(1 / rest - 1 / variances_R, 0)
    parameters = {
        "centre_D": centre_D,
        "precision": np.asarray(1 / rest / threshold**2),
        "basis_DR": (directions_RD.T * np.sqrt(lacking_R)) / threshold,
        "linear_DK": 2 * weighted_KD.T / threshold**2,
        "constant_K": (from_there_KD * weighted_KD).sum(1) / threshold**2,
    }
    tensors = {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in parameters.items()}
    return UnknownFit(score=UnknownScore(**tensors), threshold=threshold, why_not="")


def _unsupported(why: str) -> UnknownFit:
    return UnknownFit(score=None, threshold=None, why_not=why)


def unit_length(features_ND: Floats) -> npt.NDArray[np.float64]:
    """Return features scaled to length one; zeros stay."""
    features_ND = features_ND.astype(np.float64)
    return np.asarray(features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), _TINY))


@dataclass(frozen=True)
class _Precision:
    """An inverse covariance: of some directions, and one number for all others."""

    directions_RD: Floats
    inside_R: Floats
    rest: float

    def times(self, vectors_KD: Floats) -> Floats:
        inside_KR = vectors_KD @ self.directions_RD.T
        return np.asarray(self.rest * vectors_KD + (inside_KR * (self.inside_R - self.rest)) @ self.directions_RD)

    def squared_distances(self, features_ND: Floats, means_KD: Floats) -> Floats:
        weighted_KD = self.times(means_KD)
        own_N = (features_ND * self.times(features_ND)).sum(1)
        return np.asarray(
            np.maximum(own_N[:, None] - 2 * features_ND @ weighted_KD.T + (means_KD * weighted_KD).sum(1), 0)
        )


def _fit_covariance(centred_ND: Floats) -> tuple[Floats, Floats, float] | None:
    """Return the directions of largest variance (R, D) of a shrunk covariance, their variances, and the mean of the others.

    None if the features do not vary.
    """
    from scipy.linalg import eigh

    images, wide = centred_ND.shape
    mean = float(np.square(centred_ND).mean())
    if mean <= _TINY:
        return None
    shrinkage = ledoit_wolf_shrinkage(centred_ND)
    # of the smaller of the two products, which have the same eigenvalues
    by_images = images < wide
    gram = centred_ND @ centred_ND.T if by_images else centred_ND.T @ centred_ND
    rank = min(RANK, len(gram) - 1, wide - 1)
    values_R, vectors = eigh(gram, subset_by_index=[len(gram) - rank, len(gram) - 1])
    used = values_R > values_R[-1] * 1e-10
    values_R, vectors = values_R[used], vectors[:, used]
    directions_RD = (centred_ND.T @ vectors / np.sqrt(values_R)).T if by_images else vectors.T
    variances_R = (1 - shrinkage) * values_R / images + shrinkage * mean
    rest = (wide * mean - variances_R.sum()) / (wide - len(variances_R))
    return directions_RD, variances_R, float(rest)


def ledoit_wolf_shrinkage(centred_ND: Floats) -> float:
    """Return the shrinkage towards a multiple of the identity that is best for the covariance of centred data.

    The formula of Ledoit and Wolf (2004), by the smaller product of the data with itself; a test holds it against scikit-learn's.
    It is written out because importing ``sklearn.covariance`` at the end of every run takes two seconds of processor time and
    84 MB.
    """
    images, wide = centred_ND.shape
    mean = np.square(centred_ND).sum() / images / wide
    product = centred_ND @ centred_ND.T if images < wide else centred_ND.T @ centred_ND
    squared = np.square(product).sum() / images**2
    spread = (np.square(np.square(centred_ND).sum(1)).sum() / images - squared) / (images * wide)
    distance = squared / wide - mean**2
    if distance <= 0:
        return 1.0
    return float(min(max(spread, 0.0), distance) / distance)


def sample_by_class(targets_N: npt.NDArray[np.integer], classes: int) -> npt.NDArray[np.int64]:
    """Return positions of about ``MOST_IMAGES`` images, as many of each class where it has them, and at least five of each.

    So they are more in total where there are over 200 classes.

    >>> sample_by_class(np.repeat([0, 1], [3, 4000]), 2).size
    503
    """
    most = max(FEWEST_OF_A_CLASS, MOST_IMAGES // classes)
    chosen = []
    for number in range(classes):
        places = np.flatnonzero(targets_N == number)
        chosen.append(
            places if len(places) <= most else places[np.linspace(0, len(places) - 1, most).round().astype(int)]
        )
    return np.sort(np.concatenate(chosen)).astype(np.int64)
