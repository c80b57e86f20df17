"""Heads: settings that rebuild them, seeded weights, and logits as their formulas say."""

from typing import Any

import pytest
import torch

from finetune.config.schema import HeadConfig
from finetune.errors import UserError
from finetune.models.heads import HEADS, build_head

FEATURES_BD = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(HEADS))
def test_a_head_is_rebuilt_from_its_settings(name: str) -> None:
    head = build_head(name=name, num_features=6, num_classes=3, drop_rate=0.2, hidden=5, scale=7.0, seed=1).eval()
    again = build_head(**head.settings, seed=2).eval()
    again.load_state_dict(head.state_dict())
    assert torch.equal(head(FEATURES_BD), again(FEATURES_BD))
    assert again.settings == head.settings


@pytest.mark.parametrize("name", list(HEADS))
def test_dropout_acts_in_training_and_not_in_evaluation(name: str) -> None:
    head = build_head(name=name, num_features=6, num_classes=3, drop_rate=0.5)
    assert not torch.equal(head(FEATURES_BD), head(FEATURES_BD))
    head.eval()
    assert torch.equal(head(FEATURES_BD), head(FEATURES_BD))


@torch.no_grad()
def test_cosine_logits_do_not_change_with_the_length_of_the_features() -> None:
    head = build_head(name="cosine", num_features=6, num_classes=3, scale=4.0)
    torch.testing.assert_close(head(FEATURES_BD), head(10 * FEATURES_BD))
    assert head(FEATURES_BD).abs().max() <= 4.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "liner"}, "head.name='liner': not a head. .* Did you mean 'linear'"),
        ({"num_classes": 1}, "head.num_classes=1: a classifier needs at least two"),
        ({"drop_rate": 1.0}, "head.drop_rate=1.0: must be at least 0 and below 1"),
        ({"name": "mlp", "hidden": 0}, "head.hidden=0"),
        ({"name": "cosine", "scale": 0.0}, "head.scale=0.0"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_head(**{"name": "linear", "num_features": 6, "num_classes": 3, **settings})


@pytest.mark.parametrize("name", list(HEADS))
def test_every_setting_of_a_kind_can_be_configured_with_the_default_that_it_has_in_python(name: str) -> None:
    kind = HEADS[name]
    assert all(hasattr(HeadConfig(), key) for key in kind.specific)
    assert kind.specific_settings(HeadConfig()) == {key: setting.default for key, setting in kind.specific.items()}
