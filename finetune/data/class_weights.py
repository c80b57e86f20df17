"""Weights that counter class imbalance: class weights for the loss, sample weights for the sampler."""

import numpy as np
import numpy.typing as npt

from finetune.data.index import Index


def class_weights(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return class weights in inverse proportion to the counts; their mean over all samples is 1.

    >>> class_weights([30, 10]).round(3).tolist()
    [0.667, 2.0]

    A class without samples gets weight 0.
    """
    numbers = np.asarray(counts, np.float64)
    present = numbers > 0
    weights = np.zeros_like(numbers)
    weights[present] = numbers.sum() / (present.sum() * numbers[present])
    return weights


def positive_weights(counts: npt.ArrayLike, images: int) -> npt.NDArray[np.float64]:
    """Return the weight of each class's positive images in multi-label data: negatives over positives.

    A class that every image shows is treated as if one image did not show it, so that its weight stays above 0.

    >>> positive_weights([25, 50], 100).tolist()
    [3.0, 1.0]
    """
    positives = np.maximum(np.asarray(counts, np.float64), 1)
    weights: npt.NDArray[np.float64] = np.maximum(images - positives, 1) / positives
    return weights


def balanced_sample_weights(index: Index) -> npt.NDArray[np.float64]:
    """Return one weight per row, so that sampling training rows in proportion draws every class equally often.

    An image with several labels gets the weight of the rarest one; an image without labels that of the commonest class.
    """
    per_class = class_weights(index.counts()["train"])
    if not index.multi_label:
        return per_class[index.targets]
    shown: npt.NDArray[np.float64] = np.where(index.targets > 0, per_class, 0.0).max(axis=1, initial=0.0)
    shown[shown == 0] = per_class[per_class > 0].min()
    return shown
