"""The head solved to convergence is the minimum that scikit-learn finds, for every strength at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from finetune.errors import UserError
from finetune.training.linear_probe import solve_heads
from finetune.training.losses import MultiLabelLoss, TrainingLoss
from tests.runs import moved_stages, train_tiny

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    # pixels that never change among them
    return torch.tensor(data.data[:400], dtype=torch.float32), torch.tensor(data.target[:400])


def test_every_strength_gives_the_heads_that_scikit_learn_finds(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, targets = digits
    strengths = (1.0, 0.1, 0.01)
    heads = solve_heads(features, targets, num_classes=10, strengths=strengths, loss=TrainingLoss())
    assert heads.converged
    mean, scale = features.mean(0), features.std(0, correction=0)
    standardised = ((features - mean) / torch.where(scale > 0, scale, torch.inf)).double().numpy()
    for s, strength in enumerate(strengths):
        reference = LogisticRegression(C=1 / (strength * len(features)), tol=1e-6, max_iter=2000)
        expected = reference.fit(standardised, targets.numpy()).predict_proba(standardised)
        found = (features @ heads.weight_SKD[s].T + heads.bias_SK[s]).softmax(1).numpy()
        assert np.abs(found - expected).max() < 2e-3


def test_several_labels_are_solved_label_by_label(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, targets = digits
    labels = torch.stack([targets % 2, (targets > 4).long()], 1)
    heads = solve_heads(features, labels, num_classes=2, strengths=(0.1,), loss=MultiLabelLoss())
    scale = features.std(0, correction=0)
    standardised = ((features - features.mean(0)) / torch.where(scale > 0, scale, torch.inf)).double().numpy()
    for label in range(2):
        # the loss is the mean over two labels, so the penalty weighs twice
        reference = LogisticRegression(C=1 / (0.2 * len(features)), tol=1e-6, max_iter=2000)
        expected = reference.fit(standardised, labels[:, label].numpy()).predict_proba(standardised)[:, 1]
        found = (features @ heads.weight_SKD[0, label] + heads.bias_SK[0, label]).sigmoid().numpy()
        assert np.abs(found - expected).max() < 2e-3


def test_a_feature_that_never_changes_gets_no_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 4, generator=generator)
    features[:, 2] = 7.0
    targets = (features[:, 0] > 0).long()
    heads = solve_heads(features, targets, num_classes=2, strengths=(0.01,), loss=nn.CrossEntropyLoss(reduction="none"))
    assert not heads.weight_SKD[0, :, 2].any()
    logits = features @ heads.weight_SKD[0].T + heads.bias_SK[0]
    assert (logits.argmax(1) == targets).float().mean() > 0.95


def test_a_probe_moves_the_head_alone(words: Words, tmp_path: Path) -> None:
    run = train_tiny(words("schedule=probe"), tmp_path / "run")
    assert moved_stages(tmp_path / "run/phases/0-probe/start.safetensors", tmp_path / "run/final.safetensors") == {
        "head"
    }
    told = run.results["phases"][0]["probe"]
    assert told["chosen"] in told["strengths"]
    assert len(told["val_loss"]) == len(told["strengths"]) > 5


def test_the_probe_is_where_lp_ft_starts(words: Words, tmp_path: Path) -> None:
    train_tiny(words("schedule=probe"), tmp_path / "probe")
    train_tiny(words("schedule=lp_ft", "schedule.epochs=1"), tmp_path / "lp_ft")
    solved = load_file(tmp_path / "probe/final.safetensors")
    start = load_file(tmp_path / "lp_ft/phases/1-all/start.safetensors")
    assert all(torch.equal(solved[name], start[name]) for name in solved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("head=mlp", "solves linear heads only"),
        ("schedule.phases.0.train=[layer4,head]", "trains the head on fixed features"),
        ("schedule.mixup=0.2", "takes no mixup"),
    ],
)
def test_what_cannot_be_solved_is_refused(words: Words, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_tiny(words("schedule=probe", change), tmp_path / "run")
