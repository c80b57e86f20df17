"""Whether probabilities can be believed, and one number that makes them more believable (Guo et al. 2017)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 15
# of a million classes and images only so many probabilities are taken at a time, or to fit a number to
_AT_ONCE = 2**24
# probabilities are kept in single precision; below this their logarithm says nothing any more
_TINY = 1e-30
# what is left beside a probability that single precision rounds to 1: half of its last digit
_REST = 2.0**-25

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Confidence against truth, by bins of equal width.

    Args:
        confidence: Mean confidence in each bin; nan in an empty one.
        right: Share that was right, likewise.
        counts: How many fell into each bin.
        ece: Expected calibration error: the mean gap, weighted by the counts.
    """

    confidence: Floats
    right: Floats
    counts: npt.NDArray[np.int64]
    ece: float


def reliability(confidence_N: Floats, right_N: npt.NDArray[np.bool_]) -> Reliability:
    """Bin answers by their confidence, as torchmetrics does (``CalibrationError`` with ``norm="l1"``)."""
    places = np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(places, weights=confidence_N, minlength=BINS) / counts
        right = np.bincount(places, weights=right_N, minlength=BINS) / counts
    filled = counts > 0
    ece = float((np.abs(confidence - right)[filled] * counts[filled]).sum() / max(counts.sum(), 1))
    return Reliability(confidence=confidence, right=right, counts=counts, ece=ece)


def answers(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Confidence and truth of each answer.

    With one label an image that is its most probable class; with several, every pair of an image and a class answers
    whether the class is shown.

    Args:
        probabilities_NK: Of each class.
        targets: Class numbers (N,), or zeros and ones (N, K).
    """
    if targets.ndim == 2:
        return probabilities_NK.ravel(), targets.ravel() > 0
    return probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == targets


def tempered(probabilities_NK: Floats, temperature: float, *, multi_label: bool) -> Floats:
    """The probabilities that logits divided by a temperature would have given.

    >>> tempered(np.array([[0.8, 0.2]]), 1.0, multi_label=False).round(6).tolist()
    [[0.8, 0.2]]
    >>> tempered(np.array([[0.8]]), 2.0, multi_label=True).round(4).tolist()
    [[0.6667]]
    """
    shares = np.clip(probabilities_NK.astype(np.float64), _TINY, 1.0)
    if multi_label:
        rest = np.clip(1 - shares, _REST, 1.0)
        return np.asarray(1 / (1 + np.exp((np.log(rest) - np.log(shares)) / temperature)))
    # up to a constant that cancels, the logarithm of a softmax is its logits
    logits = np.log(shares) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def mean_loss(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> float:
    """Mean cross-entropy in nats; with several labels the binary one over images and classes."""
    shares = np.clip(probabilities_NK.astype(np.float64), _TINY, 1.0)
    if targets.ndim == 2:
        rest = np.clip(1 - shares, _REST, 1.0)
        return float(-np.where(targets > 0, np.log(shares), np.log(rest)).mean())
    return float(-np.log(shares[np.arange(len(targets)), targets]).mean())


def assess(
    probabilities_NK: Floats, targets: npt.NDArray[np.integer], temperature: float = 1.0
) -> tuple[Reliability, float]:
    """Reliability and mean loss under a temperature, in blocks of images that fit into memory."""
    several = targets.ndim == 2
    block = max(1, _AT_ONCE // probabilities_NK.shape[1])
    pairs, total = [], 0.0
    for start in range(0, len(targets), block):
        shares, true = probabilities_NK[start : start + block], targets[start : start + block]
        if temperature != 1.0:
            shares = tempered(shares, temperature, multi_label=several)
        pairs.append(answers(shares, true))
        total += mean_loss(shares, true) * len(true)
    confidence, right = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return reliability(confidence, right), total / len(targets)


def fit_temperature(probabilities_NK: Floats, targets: npt.NDArray[np.integer]) -> float:
    """The temperature that makes the loss on these images smallest, between 0.05 and 20.

    Of very many images a part, spread evenly over them, gives the one number.
    """
    from scipy.optimize import minimize_scalar

    several = targets.ndim == 2
    most = max(1, _AT_ONCE // probabilities_NK.shape[1])
    if len(targets) > most:
        rows = np.linspace(0, len(targets) - 1, most).astype(np.int64)
        probabilities_NK, targets = probabilities_NK[rows], targets[rows]

    def loss(log_temperature: float) -> float:
        return mean_loss(tempered(probabilities_NK, float(np.exp(log_temperature)), multi_label=several), targets)

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-3})
    return float(np.exp(found.x))
