"""``head=linear``: one linear layer."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from finetune.models.heads.kind import Head, HeadKind
from finetune.plain import Json

# B = batch, D = features, K = classes


class LinearHead(Head):
    """A head of dropout and one linear layer.

    Args:
        num_features: Number of features ``D`` of the backbone.
        num_classes: Number of classes ``K``.
        drop_rate: Probability of dropping a feature in training, 0 to 1.
    """

    def __init__(self, *, num_features: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.settings: dict[str, Json] = {
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


def _logits_alone(features: Any, weights: Mapping[str, Any], functional: Any) -> Any:
    return functional.linear(features, weights["fc.weight"], weights["fc.bias"])


LINEAR = HeadKind(module=LinearHead, logits_alone=_logits_alone, is_linear=True)
