"""A linear head of more classes: the rows of the old ones as they are, those of new ones imprinted from features."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from finetune.models.heads.linear import LinearHead

# N = images, D = features, K = classes, M = rows of the head before


def grown_head(
    head: LinearHead,
    *,
    names: Sequence[str],
    classes: Sequence[str],
    features_of: Callable[[str], Tensor],
) -> LinearHead:
    """Return a linear head for other classes, which hold all classes that it has.

    The row of a class that it has stays as it is, to the bit; where several of its rows have one name, their mean takes their
    place. The row of a new class is imprinted from the mean of its normalised features (Qi, Brown and Lowe 2018, "Low-Shot
    Learning with Imprinted Weights", arXiv 1712.07136): it points from the mean of all classes to that of the class, with the
    mean length of the rows of the head, and its bias gives the mean of all classes the logit that the head has there on average.

    Qi et al. normalise features and rows, so that every class has the same scale. In a head that does not, a row along the class
    mean itself, most of which all images share after a ReLU, would give every image a large logit of the new class.

    Args:
        head: Head of M rows.
        names: Name of each row, of length M; several rows may have one.
        classes: The K classes of the new head, in order; each of ``names`` is among them.
        features_of: Returns the features (N, D) of training images of a class; of an old class there may be none.
    """
    weight_MD, bias_M = head.fc.weight.detach(), head.fc.bias.detach()
    grown = LinearHead(num_features=weight_MD.shape[1], num_classes=len(classes), drop_rate=float(head.drop.p))
    with torch.no_grad():
        new = [number for number, name in enumerate(classes) if name not in names]
        means = {number: _mean(features) for number, name in enumerate(classes) if len(features := features_of(name))}
        for number, name in enumerate(classes):
            rows = [row for row, known in enumerate(names) if known == name]
            if len(rows) == 1:
                grown.fc.weight[number], grown.fc.bias[number] = weight_MD[rows[0]], bias_M[rows[0]]
            elif rows:
                grown.fc.weight[number] = weight_MD[rows].double().mean(0)
                grown.fc.bias[number] = bias_M[rows].double().mean()
        if new:
            rows_MD, biases_M = weight_MD.double(), bias_M.double()
            length, centre_D = rows_MD.norm(dim=1).mean(), torch.stack(list(means.values())).mean(0)
            level = (rows_MD @ centre_D + biases_M).mean()
            for number in new:
                row_D = length * torch.nn.functional.normalize(means[number] - centre_D, dim=0)
                grown.fc.weight[number], grown.fc.bias[number] = row_D, level - row_D @ centre_D
    return grown


def _mean(features_ND: Tensor) -> Tensor:
    """Return the mean (D,) of normalised features, at the mean length of the features."""
    features_ND = features_ND.double()
    mean_D: Tensor = torch.nn.functional.normalize(features_ND, dim=1).mean(0)
    length: Tensor = features_ND.norm(dim=1).mean()
    return length * mean_D


def merged_names(rename: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the old names that become one class, by its name.

    >>> merged_names({"tabby": "cat", "tom": "cat", "pup": "dog"}, ["pup", "tabby", "tom"])
    {'cat': ['tabby', 'tom']}
    """
    olds: dict[str, list[str]] = {}
    for name in names:
        olds.setdefault(rename.get(name, name), []).append(name)
    return {new: those for new, those in olds.items() if len(those) > 1}
