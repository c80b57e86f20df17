"""Classifier heads, from ``(B, D)`` features to ``(B, K)`` logits."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that PyTorch's own documentation uses)
from torch import Tensor, nn

from finetune.errors import UserError, did_you_mean

# B = batch, D = features, E = hidden features, K = classes


class LinearHead(nn.Module):
    """A head of dropout and one linear layer.

    Args:
        num_features: Number of features ``D`` of the backbone.
        num_classes: Number of classes ``K``.
        drop_rate: Probability of dropping a feature in training, 0 to 1.
    """

    def __init__(self, *, num_features: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "name": "linear",
            "num_features": num_features,
            "num_classes": num_classes,
            "drop_rate": drop_rate,
        }
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(num_features, num_classes)

    def forward(self, features_BD: Tensor) -> Tensor:
        logits_BK: Tensor = self.fc(self.drop(features_BD))
        return logits_BK


class MLPHead(nn.Module):
    """A head with one hidden layer and ReLU, with dropout before and after it.

    Args:
        num_features: Number of features ``D`` of the backbone.
        num_classes: Number of classes ``K``.
        drop_rate: Probability of dropping a feature in training, 0 to 1.
        hidden: Width ``E`` of the hidden layer.
    """

    def __init__(self, *, num_features: int, num_classes: int, drop_rate: float, hidden: int) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "name": "mlp",
            "num_features": num_features,
            "num_classes": num_classes,
            "drop_rate": drop_rate,
            "hidden": hidden,
        }
        self.drop = nn.Dropout(drop_rate)
        self.fc1 = nn.Linear(num_features, hidden)
        self.act = nn.ReLU()
        self.drop2 = nn.Dropout(drop_rate)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, features_BD: Tensor) -> Tensor:
        hidden_BE = self.act(self.fc1(self.drop(features_BD)))
        logits_BK: Tensor = self.fc(self.drop2(hidden_BE))
        return logits_BK


class CosineHead(nn.Module):
    """A head of scaled cosine similarities (Gidaris and Komodakis 2018, arXiv 1804.09458).

    ``logit_k = scale * cos(features, weight_k)``, with one learned direction per class and a learned scale. A class
    cannot win by a longer weight vector, which helps where classes differ much in their number of images.

    Args:
        num_features: Number of features ``D`` of the backbone.
        num_classes: Number of classes ``K``.
        drop_rate: Probability of dropping a feature in training, 0 to 1.
        scale: Initial value of the scale.
    """

    def __init__(self, *, num_features: int, num_classes: int, drop_rate: float, scale: float) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "name": "cosine",
            "num_features": num_features,
            "num_classes": num_classes,
            "drop_rate": drop_rate,
            "scale": scale,
        }
        self.drop = nn.Dropout(drop_rate)
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.normal_(self.weight, std=num_features**-0.5)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, features_BD: Tensor) -> Tensor:
        cosine_BK = F.linear(F.normalize(self.drop(features_BD), dim=1), F.normalize(self.weight, dim=1))
        return self.scale * cosine_BK


Head = LinearHead | MLPHead | CosineHead
HEADS: dict[str, type[LinearHead] | type[MLPHead] | type[CosineHead]] = {
    "linear": LinearHead,
    "mlp": MLPHead,
    "cosine": CosineHead,
}


def build_head(
    *,
    name: str,
    num_features: int,
    num_classes: int,
    drop_rate: float = 0.0,
    hidden: int = 512,
    scale: float = 16.0,
    seed: int = 0,
) -> Head:
    """Build a head with seeded weights; leave the global random state alone.

    Args:
        name: Kind of head: ``linear``, ``mlp`` or ``cosine``.
        num_features: Number of features ``D`` of the backbone.
        num_classes: Number of classes ``K``, at least 2.
        drop_rate: Probability of dropping a feature in training, 0 to below 1.
        hidden: Width of the hidden layer (``mlp`` only).
        scale: Initial value of the learned scale (``cosine`` only).
        seed: Seed of the weights.

    Raises:
        UserError: The name is unknown or a value is out of range.

    >>> build_head(name="linear", num_features=8, num_classes=3)(torch.zeros(2, 8)).shape
    torch.Size([2, 3])
    """
    if name not in HEADS:
        raise UserError(f"head.name={name!r}: not a head. Heads: {', '.join(HEADS)}.{did_you_mean(name, HEADS)}")
    if num_classes < 2:
        raise UserError(f"head.num_classes={num_classes}: a classifier needs at least two classes.")
    if not 0 <= drop_rate < 1:
        raise UserError(f"head.drop_rate={drop_rate}: must be at least 0 and below 1.")
    if hidden < 1:
        raise UserError(f"head.hidden={hidden}: must be at least 1.")
    if scale <= 0:
        raise UserError(f"head.scale={scale}: must be positive.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "linear":
            return LinearHead(num_features=num_features, num_classes=num_classes, drop_rate=drop_rate)
        if name == "mlp":
            return MLPHead(num_features=num_features, num_classes=num_classes, drop_rate=drop_rate, hidden=hidden)
        return CosineHead(num_features=num_features, num_classes=num_classes, drop_rate=drop_rate, scale=scale)
