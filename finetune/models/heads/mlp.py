"""``head=mlp``: one hidden layer with ReLU."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from finetune.models.heads.kind import Head, HeadKind, HeadSetting
from finetune.plain import Json

# B = batch, D = features, E = hidden features, K = classes


class MLPHead(Head):
    """A head with one hidden layer and ReLU, with dropout before and after it.

    Args:
        num_features: Number of features ``D`` of the backbone.
        num_classes: Number of classes ``K``.
        drop_rate: Probability of dropping a feature in training, 0 to 1.
        hidden: Width ``E`` of the hidden layer.
    """

    def __init__(self, *, num_features: int, num_classes: int, drop_rate: float, hidden: int) -> None:
        super().__init__()
        self.settings: dict[str, Json] = {
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


def _logits_alone(features: Any, weights: Mapping[str, Any], functional: Any) -> Any:
    hidden = functional.linear(features, weights["fc1.weight"], weights["fc1.bias"]).relu()
    return functional.linear(hidden, weights["fc.weight"], weights["fc.bias"])


MLP = HeadKind(
    module=MLPHead,
    logits_alone=_logits_alone,
    specific={
        "hidden": HeadSetting(default=512, holds=lambda width: width >= 1, rule="must be at least 1", is_size=True),
    },
)
