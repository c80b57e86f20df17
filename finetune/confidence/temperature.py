"""Calibration of probabilities, and temperature scaling, which improves it with one number (Guo et al. 2017)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.file_schema import THRESHOLD

BINS = 15
# most probabilities in memory at a time, or used for a fit: those of many classes and images would not fit into memory
_AT_ONCE = 2**24
# probabilities are in single precision; below this value their logarithm is meaningless
_TINY = 1e-30
# complement of a probability that single precision rounds to 1: half of its last digit
_REST = 2.0**-25
# 95 % quantile of chi-squared with one degree of freedom: twice the gain in log-likelihood that one number brings by chance
_BY_CHANCE = 3.84

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Confidence compared with accuracy, in bins of equal width.

    Args:
        confidence: Mean confidence of each bin; NaN for an empty bin.
        accuracy: Fraction of correct answers in each bin; NaN for an empty bin.
        counts: Number of answers in each bin.
        ece: Expected calibration error: mean gap between confidence and accuracy, weighted by the counts.
    """

    confidence: Floats
    accuracy: Floats
    counts: npt.NDArray[np.int64]
    ece: float


def reliability(confidence_N: Floats, right_N: npt.NDArray[np.bool_]) -> Reliability:
    """Bin answers by confidence, as torchmetrics does (``CalibrationError`` with ``norm="l1"``)."""
    places = np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(places, weights=confidence_N, minlength=BINS) / counts
        accuracy = np.bincount(places, weights=right_N, minlength=BINS) / counts
    filled = counts > 0
    ece = float((np.abs(confidence - accuracy)[filled] * counts[filled]).sum() / max(counts.sum(), 1))
    return Reliability(confidence=confidence, accuracy=accuracy, counts=counts, ece=ece)


def answers(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the confidence of each answer, and whether it is correct.

    Single-label, the answer of an image is its most probable class; multi-label, every pair of an image and a class is an
    answer to whether the image shows the class.

    Args:
        probabilities_NK: Probabilities of the classes.
        targets: Class numbers (N,), or zeros and ones (N, K).
    """
    if targets.ndim == 2:
        return probabilities_NK.ravel(), targets.ravel() > 0
    return probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == targets


def tempered(probabilities_NK: Floats, temperature: float, *, multi_label: bool) -> Floats:
    """Return the probabilities that logits divided by a temperature would give.

    >>> tempered(np.array([[0.8, 0.2]]), 1.0, multi_label=False).round(6).tolist()
    [[0.8, 0.2]]
    >>> tempered(np.array([[0.8]]), 2.0, multi_label=True).round(4).tolist()
    [[0.6667]]
    """
    probabilities = np.clip(probabilities_NK.astype(np.float64), _TINY, 1.0)
    if multi_label:
        rest = np.clip(1 - probabilities, _REST, 1.0)
        return np.asarray(1 / (1 + np.exp((np.log(rest) - np.log(probabilities)) / temperature)))
    # up to a constant that cancels, the logarithm of a softmax equals its logits
    logits = np.log(probabilities) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def mean_loss(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> float:
    """Return the mean cross-entropy in nats; for multi-label the binary one over images and classes."""
    probabilities = np.clip(probabilities_NK.astype(np.float64), _TINY, 1.0)
    if targets.ndim == 2:
        rest = np.clip(1 - probabilities, _REST, 1.0)
        return float(-np.where(targets > 0, np.log(probabilities), np.log(rest)).mean())
    return float(-np.log(probabilities[np.arange(len(targets)), targets]).mean())


def assess(
    probabilities_NK: Floats, targets: npt.NDArray[np.integer], temperature: float = 1.0
) -> tuple[Reliability, float]:
    """Return reliability and mean loss at a temperature, computed in blocks of images that fit into memory."""
    several = targets.ndim == 2
    block = max(1, _AT_ONCE // probabilities_NK.shape[1])
    pairs, total = [], 0.0
    for start in range(0, len(targets), block):
        probabilities, true = probabilities_NK[start : start + block], targets[start : start + block]
        if temperature != 1.0:
            probabilities = tempered(probabilities, temperature, multi_label=several)
        pairs.append(answers(probabilities, true))
        total += mean_loss(probabilities, true) * len(true)
    confidence, right = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return reliability(confidence, right), total / len(targets)


def fit_temperature(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> float:
    """Return the temperature between 0.05 and 20 that minimises the loss on these images.

    If there are very many images, a subset spread evenly over them is used.
    """
    from scipy.optimize import minimize_scalar

    several = targets.ndim == 2
    most = max(1, _AT_ONCE // probabilities_NK.shape[1])
    if len(targets) > most:
        rows = np.linspace(0, len(targets) - 1, most).astype(np.int64)
        probabilities_NK, targets = probabilities_NK[rows], targets[rows]

    def loss(log_temperature: float) -> float:
        return mean_loss(tempered(probabilities_NK, float(np.exp(log_temperature)), multi_label=several), targets)

    result = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(result.x))


def why_not_tempered(probabilities_NK: Floats, targets: npt.NDArray[np.integer], temperature: float) -> str:
    """Return why these images do not support a temperature that was fitted on them; empty if they do.

    If every answer is correct, the loss keeps falling as the temperature falls, so the best value means nothing. Otherwise the
    temperature must fit better than 1 by more than chance (likelihood-ratio test, 95 %). Of simulated networks that need no
    temperature (3 classes, 12 to 400 validation images, 150 draws each), always applying a temperature made 98 to 100 % worse,
    and applying one only if it passes this test made 3 to 7 % worse.

    Args:
        probabilities_NK: Probabilities of the classes on the images of the fit.
        targets: Class numbers (N,), or zeros and ones (N, K).
        temperature: The one that :func:`fit_temperature` returned.
    """
    several = targets.ndim == 2
    shown = (probabilities_NK > THRESHOLD) == (targets > 0) if several else probabilities_NK.argmax(axis=1) == targets
    if shown.all():
        return (
            "every answer on the validation images is correct, so they do not tell how confident the network should be"
        )
    gain = 2 * targets.size * (assess(probabilities_NK, targets)[1] - assess(probabilities_NK, targets, temperature)[1])
    if gain <= _BY_CHANCE:
        return f"on {len(targets):,} validation images it fits no better than by chance"
    return ""
