"""Losses against torch's, and the mixers."""

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from finetune.training.losses import MultiLabelLoss, TrainingLoss, build_mixer

LOGITS = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)) * 3
TARGETS = torch.arange(16) % 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    expected = torch.nn.functional.cross_entropy(LOGITS, TARGETS, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(TrainingLoss(label_smoothing=smoothing)(LOGITS, TARGETS), expected)


def test_class_weights_are_torchs_before_its_mean() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 4.0])
    expected = torch.nn.functional.cross_entropy(LOGITS, TARGETS, weight=weights, reduction="none")
    torch.testing.assert_close(TrainingLoss(class_weights=weights)(LOGITS, TARGETS), expected)


def test_shares_of_classes_are_torchs_soft_targets() -> None:
    shares = torch.rand(16, 5).softmax(1)
    expected = torch.nn.functional.cross_entropy(LOGITS, shares, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(TrainingLoss(label_smoothing=0.1)(LOGITS, shares), expected)


def test_focal_of_two_classes_is_torchvisions_binary_one() -> None:
    scores = LOGITS[:, 0]
    truth = (TARGETS % 2).float()
    expected = sigmoid_focal_loss(scores, truth, alpha=-1, gamma=2.0)
    two = torch.stack([torch.zeros_like(scores), scores], dim=1)
    torch.testing.assert_close(TrainingLoss(name="focal", focal_gamma=2.0)(two, truth.long()), expected)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 1.0, 4.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_several_labels_is_torchs_binary_one(smoothing: float, weights: torch.Tensor | None) -> None:
    labels = (torch.rand(16, 5, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.uint8)
    soft = labels * (1 - smoothing) + smoothing / 2
    expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, soft, pos_weight=weights, reduction="none")
    found = MultiLabelLoss(label_smoothing=smoothing, class_weights=weights)(LOGITS, labels)
    torch.testing.assert_close(found, expected.mean(1))


def test_focal_of_several_labels_is_torchvisions() -> None:
    labels = (torch.rand(16, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    expected = sigmoid_focal_loss(LOGITS, labels, alpha=-1, gamma=1.5).mean(1)
    torch.testing.assert_close(MultiLabelLoss(name="focal", focal_gamma=1.5)(LOGITS, labels), expected)


@pytest.mark.parametrize("kind", [TrainingLoss, MultiLabelLoss])
def test_settings_of_the_loss_are_not_state(kind: type[TrainingLoss | MultiLabelLoss]) -> None:
    assert kind(class_weights=torch.ones(3)).state_dict() == {}


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_keeps_the_sum_of_shares_and_follows_the_generator(mixup: float, cutmix: float) -> None:
    mixer = build_mixer(mixup=mixup, cutmix=cutmix, num_classes=5)
    assert mixer is not None
    images = torch.rand(16, 3, 8, 8)
    torch.manual_seed(3)
    first = mixer(images, TARGETS)
    torch.manual_seed(3)
    second = mixer(images, TARGETS)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[1].sum(1), torch.ones(16))
    assert not torch.equal(first[0], images)


def test_mixing_of_several_labels_shares_each_of_them() -> None:
    mixer = build_mixer(mixup=0.4, cutmix=0.0, num_classes=3)
    assert mixer is not None
    labels = torch.tensor([[1, 1, 0], [0, 1, 0]], dtype=torch.uint8)
    torch.manual_seed(3)
    images, shares = mixer(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]), labels)
    second = images.mean((1, 2, 3))  # the share of the second image in each
    torch.testing.assert_close(shares, torch.stack([1 - second, torch.ones(2), torch.zeros(2)], dim=1))


def test_nothing_mixes_where_both_are_off() -> None:
    assert build_mixer(mixup=0.0, cutmix=0.0, num_classes=5) is None
