"""Find file properties (format, size, border) that identify a class: shortcuts that a network may learn (Geirhos et al. 2020)."""

from typing import Any

import numpy as np
import numpy.typing as npt

# both a class and the others need this many images, and the fact must classify this share of each correctly
_LEAST_IMAGES = 10
_LEAST_SHARE = 0.97
# most pictures of a class that are opened: enough to measure the share
_EXAMINED = 64


def class_shortcuts(
    targets: npt.NDArray[np.int64] | npt.NDArray[np.uint8], table: np.ndarray[Any, Any]
) -> dict[str, list[int]]:
    """Return the classes that a single fact about the files separates from all others, by the name of the fact.

    Args:
        targets: Class of each image, int64 (N,).
        table: Facts of each image, with the columns of :data:`finetune.data.scan.FACT_TYPE`.
    """
    width, height = table["width"].astype(np.int64), table["height"].astype(np.int64)
    values = {
        "format": table["kind"].astype(np.int64),
        "mode": table["mode"].astype(np.int64),
        "size": width * 2**32 + height,
    }
    ordered = {"size": width * height, "shape": width * 1000 // np.maximum(height, 1)}
    separated: dict[str, list[int]] = {}
    for target in np.unique(targets).tolist():
        own = targets == target
        if min(own.sum(), (~own).sum()) < _LEAST_IMAGES:
            continue
        fact = next((name for name, column in values.items() if _by_value(own, column)), None)
        fact = fact or next((name for name, column in ordered.items() if _by_limit(own, column)), None)
        if fact is not None:
            separated.setdefault(fact, []).append(target)
    return separated


def classes_by_border(targets: npt.NDArray[np.int64], borders: npt.NDArray[np.int64]) -> list[int]:
    """Return the classes that the borders of their pictures separate from all others.

    Args:
        targets: Class of each picture, int64 (N,).
        borders: Border of each picture, from :func:`finetune.data.borders.border_of`, int64 (N,).
    """
    separated = []
    for target in np.unique(targets).tolist():
        own = targets == target
        if min(own.sum(), (~own).sum()) >= _LEAST_IMAGES and _by_value(own, borders):
            separated.append(target)
    return separated


def some_of_each_class(targets: npt.NDArray[np.int64], *, most: int) -> npt.NDArray[np.int64]:
    """Return at most ``most`` rows, as many of each class as there is room for, spread over the data set, int64 (M,)."""
    classes = np.unique(targets)
    each = min(_EXAMINED, most // max(len(classes), 1))
    chosen = []
    for target in classes.tolist():
        rows = np.flatnonzero(targets == target)
        chosen.append(rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(np.int64)])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _by_value(own: npt.NDArray[np.bool_], column: npt.NDArray[np.int64]) -> bool:
    """Tell whether the values that are more frequent in a class than outside cover nearly all of it, and almost none outside."""
    _, position = np.unique(column, return_inverse=True)
    inside = np.bincount(position[own], minlength=position.max() + 1) / own.sum()
    outside = np.bincount(position[~own], minlength=position.max() + 1) / (~own).sum()
    # a value of a single image proves nothing, so only values of several images count
    usual = (inside > outside) & (inside * own.sum() >= 3)
    return bool(inside[usual].sum() >= _LEAST_SHARE and outside[usual].sum() <= 1 - _LEAST_SHARE)


def _by_limit(own: npt.NDArray[np.bool_], column: npt.NDArray[np.int64]) -> bool:
    """Tell whether nearly all of a class lies on one side of a threshold, and nearly all others on the other side."""
    values, position = np.unique(column, return_inverse=True)
    if len(values) < 2:
        return False
    below = np.cumsum(np.bincount(position[own], minlength=len(values)))[:-1] / own.sum()
    others = np.cumsum(np.bincount(position[~own], minlength=len(values)))[:-1] / (~own).sum()
    right = np.maximum(np.minimum(below, 1 - others), np.minimum(1 - below, others))
    return bool(right.max() >= _LEAST_SHARE)
