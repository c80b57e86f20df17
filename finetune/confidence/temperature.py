"""Calibration of probabilities, and temperature scaling, which improves it with one number (Guo et al. 2017)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.counted import counted
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
# temperatures that are tried; a fit that ends at one of them has found no optimum
LOWEST, HIGHEST = 0.05, 20.0
_FOLDS = 5
# with fewer wrong answers, a temperature that passes the other tests makes other images worse as often as better
FEWEST_MISTAKES = 10

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Confidence compared with accuracy, in bins of equal width.

    Args:
        confidence: Mean confidence of each bin; NaN for an empty bin.
        accuracy: Share of the answers in each bin that came true; NaN for an empty bin.
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
    """Return the confidence of each answer, and whether it came true.

    Single-label, the answer of an image is its most probable class, which is right or wrong; multi-label, every pair of an image
    and a class is an answer, and comes true if the image shows the class.

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
    return float(_losses(probabilities_NK, targets).mean())


def _losses(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> Floats:
    """Return the cross-entropy of each image (N,) in nats; for multi-label the mean binary one of its classes."""
    probabilities = np.clip(probabilities_NK.astype(np.float64), _TINY, 1.0)
    if targets.ndim == 2:
        rest = np.clip(1 - probabilities, _REST, 1.0)
        return np.asarray(-np.where(targets > 0, np.log(probabilities), np.log(rest)).mean(axis=1))
    return np.asarray(-np.log(probabilities[np.arange(len(targets)), targets]))


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


@dataclass(frozen=True, kw_only=True)
class TemperatureFit:
    """A temperature fitted on validation images.

    Args:
        temperature: Divisor of the logits, four digits; 1 if none is supported.
        interval: 95 % interval of the temperature by its likelihood; None if none is supported.
        why_not: Why these images support none; empty if they do.
    """

    temperature: float
    interval: tuple[float, float] | None
    why_not: str


def fit_temperature(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> TemperatureFit:
    """Fit the temperature that minimises the loss on these images, and judge whether they support one.

    They do not if fewer than ten answers are wrong (if none is, the loss keeps falling as the temperature falls, so the best
    value means nothing), if the best value is at the end of the range, if it fits no better than 1 beyond chance
    (likelihood-ratio test, 95 %), or if temperatures fitted on four fifths of the images do not lower the loss of the remaining
    fifths by a standard error.

    Of 480 simulated networks (``tests/benchmarks/temperature_rules.py``: 5 classes, 30 to 1,000 validation images, true
    temperatures around 1), always applying one lowers the calibration error from 0.050 to 0.029 and makes the loss of 23 % worse;
    these rules together lower it to 0.033, apply one to 33 %, and make 3 % of those worse.

    Of 16 real runs (``tests/benchmarks/temperature_of_runs.py``: EfficientNet-Lite0 with its ImageNet weights and the embedded
    ResNet-18, the default schedule at 64 pixels, four sets of photographs, drawings, clothes and solar cells, two seeds, random
    halves of 65 to 500 images): the mean calibration error falls from 0.083 to 0.077 (change -0.0055, standard error 0.0030), the
    loss from 0.756 to 0.743. Seven runs get none. Of the other nine, drawings by Lite0 gain most (0.103 to 0.058); one loses
    0.0007 of loss, another 0.0016 of calibration error, and a third, of 65 images, 0.006.

    If there are very many images, a subset spread evenly over them is used.

    Args:
        probabilities_NK: Probabilities of the classes.
        targets: Class numbers (N,), or zeros and ones (N, K).
    """
    several = targets.ndim == 2
    most = max(1, _AT_ONCE // probabilities_NK.shape[1])
    if len(targets) > most:
        rows = np.linspace(0, len(targets) - 1, most).astype(np.int64)
        probabilities_NK, targets = probabilities_NK[rows], targets[rows]
    if len(targets) < 2 * _FOLDS:
        return _unsupported(f"{counted(len(targets), 'validation image')} of at least {2 * _FOLDS} that it takes")
    shown = (probabilities_NK > THRESHOLD) == (targets > 0) if several else probabilities_NK.argmax(axis=1) == targets
    wrong = int(shown.size - shown.sum())
    if wrong < FEWEST_MISTAKES:
        verb = "are" if wrong > 1 else "is"
        return _unsupported(
            f"{wrong or 'none'} of {counted(shown.size, 'answer')} on the validation images {verb} wrong, and it takes "
            f"{FEWEST_MISTAKES} to tell how confident the network should be"
        )
    temperature = _best(probabilities_NK, targets)
    if not 1.01 * LOWEST < temperature < HIGHEST / 1.01:
        return _unsupported(f"on {counted(len(targets), 'validation image')} no temperature fits best")
    # twice the log-likelihood lost against the best temperature
    best = _loss(probabilities_NK, targets, temperature)

    def lost(log_temperature: float) -> float:
        return 2 * targets.size * (_loss(probabilities_NK, targets, float(np.exp(log_temperature))) - best)

    if lost(0.0) <= _BY_CHANCE or not _helps_others(probabilities_NK, targets):
        return _unsupported(f"on {counted(len(targets), 'validation image')} one fits no better than by chance")
    ends = [_crossing(lambda at: lost(at) - _BY_CHANCE, np.log(temperature), np.log(end)) for end in (LOWEST, HIGHEST)]
    low, high = (float(f"{np.exp(end):.4g}") for end in ends)
    return TemperatureFit(temperature=float(f"{temperature:.4g}"), interval=(low, high), why_not="")


def _unsupported(why: str) -> TemperatureFit:
    return TemperatureFit(temperature=1.0, interval=None, why_not=why)


def _loss(probabilities_NK: Floats, targets: npt.NDArray[np.integer], temperature: float) -> float:
    return mean_loss(tempered(probabilities_NK, temperature, multi_label=targets.ndim == 2), targets)


def _best(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> float:
    from scipy.optimize import minimize_scalar

    result = minimize_scalar(
        lambda at: _loss(probabilities_NK, targets, float(np.exp(at))),
        bounds=(np.log(LOWEST), np.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(result.x))


def _crossing(function: Callable[[float], float], inside: float, end: float) -> float:
    """Return where a function that is negative inside reaches zero on the way to the end; the end if it does not."""
    from scipy.optimize import brentq

    return end if function(end) <= 0 else float(brentq(function, *sorted((inside, end)), xtol=1e-4))


def _helps_others(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> bool:
    """Tell whether temperatures fitted on all but a fifth of the images lower the loss of the fifth by a standard error."""
    several, images = targets.ndim == 2, np.arange(len(targets))
    gains_N = np.zeros(len(targets))
    for fold in range(_FOLDS):
        out = images % _FOLDS == fold
        temperature = _best(probabilities_NK[~out], targets[~out])
        probabilities, true = probabilities_NK[out], targets[out]
        after = tempered(probabilities, temperature, multi_label=several)
        gains_N[out] = _losses(probabilities, true) - _losses(after, true)
    return bool(gains_N.mean() > gains_N.std() / np.sqrt(len(gains_N)))
