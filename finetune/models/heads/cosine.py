"""``head=cosine``: scaled cosine similarities to one direction per class."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that PyTorch's own documentation uses)
from torch import Tensor, nn

from finetune.models.heads.kind import Head, HeadKind, HeadSetting
from finetune.plain import Json

# B = batch, D = features, K = classes


class CosineHead(Head):
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
        self.settings: dict[str, Json] = {
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


def _logits_alone(features: Any, weights: Mapping[str, Any], functional: Any) -> Any:
    directions = functional.normalize(weights["weight"], dim=1)
    return weights["scale"] * functional.linear(functional.normalize(features, dim=1), directions)


COSINE = HeadKind(
    module=CosineHead,
    logits_alone=_logits_alone,
    specific={"scale": HeadSetting(default=16.0, holds=lambda scale: scale > 0, rule="must be positive")},
)
