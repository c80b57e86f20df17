"""The head solved to convergence is the minimum that scikit-learn finds, for every strength."""

import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune.build import assemble
from finetune.config import compose
from finetune.errors import UserError
from finetune.runners.train import decide
from finetune.training import linear_probe
from finetune.training.linear_probe import Solved, feature_scale, solve_heads
from finetune.training.losses import MultiLabelLoss, TrainingLoss
from finetune.training.plan import build_plan
from tests.conftest import TINY, write_images
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
    standardised = ((features.double() - features.double().mean(0)) / feature_scale(features.double())).numpy()
    for s, strength in enumerate(strengths):
        reference = LogisticRegression(C=1 / (strength * len(features)), tol=1e-6, max_iter=2000)
        expected = reference.fit(standardised, targets.numpy()).predict_proba(standardised)
        found = (features @ heads.weight_SKD[s].T + heads.bias_SK[s]).softmax(1).numpy()
        assert np.abs(found - expected).max() < 2e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_every_strength_converges_on_features_that_depend_on_each_other(seed: int) -> None:
    # as the pooled features of a network do: few directions hold most of the variance
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(96, 96, generator=generator) * torch.logspace(0, -3, 96)
    features = (torch.randn(200, 96, generator=generator) @ mixing.T).relu()
    targets = torch.randint(0, 8, (200,), generator=generator)
    heads = solve_heads(features, targets, num_classes=8, loss=TrainingLoss())
    assert heads.converged
    assert max(heads.iterations) < 500
    # a weaker penalty never fits the training images worse
    assert all(weak <= strong + 1e-6 for strong, weak in pairwise(heads.losses))


def test_classes_of_different_weight_are_those_of_scikit_learn(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, targets = digits
    weights = torch.linspace(0.3, 3.0, 10)
    heads = solve_heads(features, targets, num_classes=10, strengths=(0.1,), loss=TrainingLoss(class_weights=weights))
    standardised = ((features.double() - features.double().mean(0)) / feature_scale(features.double())).numpy()
    reference = LogisticRegression(
        C=1 / (0.1 * len(features)), tol=1e-6, max_iter=2000, class_weight=dict(enumerate(weights.tolist()))
    )
    expected = reference.fit(standardised, targets.numpy()).predict_proba(standardised)
    found = (features @ heads.weight_SKD[0].T + heads.bias_SK[0]).softmax(1).numpy()
    assert np.abs(found - expected).max() < 2e-3


def test_images_of_different_weight_count_as_scikit_learn_counts_them(
    digits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    features, targets = digits
    weights = torch.linspace(0.2, 1.8, len(features), dtype=torch.float64)
    heads = solve_heads(
        features, targets, num_classes=10, strengths=(0.1,), loss=TrainingLoss(), sample_weights=weights
    )
    standardised = ((features.double() - features.double().mean(0)) / feature_scale(features.double())).numpy()
    reference = LogisticRegression(C=1 / (0.1 * len(features)), tol=1e-6, max_iter=2000)
    reference.fit(standardised, targets.numpy(), sample_weight=weights.numpy())
    found = (features @ heads.weight_SKD[0].T + heads.bias_SK[0]).softmax(1).numpy()
    assert np.abs(found - reference.predict_proba(standardised)).max() < 2e-3


def _share(row: dict[str, str], name: str) -> float:
    """Probability of one of two classes."""
    return float(row["probability"]) if row["predicted"] == name else 1 - float(row["probability"])


def test_a_solved_head_weighs_classes_equally_where_training_images_are_drawn_so(tmp_path: Path) -> None:
    for name, count in {"few": 8, "many": 40}.items():
        write_images(tmp_path / "data" / name, count=count, hue=(90, 90, 90), seed=count)
    words = ["data=folder", f"data.root={tmp_path / 'data'}", *TINY, "schedule=probe"]
    # images of the same noise: all that a head can learn of them is how frequent the classes are
    shares = []
    for balanced in ("false", "true"):
        run = train_tiny([*words, f"data.balanced={balanced}"], tmp_path / balanced)
        with (run.run_dir / "predictions.csv").open() as file:
            shares.append(np.mean([_share(row, "few") for row in csv.DictReader(file)]))
    assert shares[0] < 0.25
    assert 0.35 < shares[1] < 0.65


def test_a_feature_that_fired_in_one_training_image_does_not_decide_about_others() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 20, generator=generator)
    features[:, 7] = 0
    features[3, 7] = 1e-3
    targets = (features[:, 0] > 0).long()
    heads = solve_heads(features, targets, num_classes=2, loss=TrainingLoss())
    image = torch.zeros(1, 20)
    image[0, 7] = 0.1
    for weight_KD, bias_K in zip(heads.weight_SKD, heads.bias_SK, strict=True):
        moved = image @ weight_KD.T + bias_K - bias_K
        assert moved.abs().max() < 1


def test_features_that_never_change_leave_the_class_frequencies() -> None:
    targets = torch.tensor([0, 0, 0, 1])
    heads = solve_heads(torch.ones(4, 3), targets, num_classes=2, strengths=(0.1,), loss=TrainingLoss())
    assert not heads.weight_SKD.any()
    assert heads.bias_SK[0].softmax(0).tolist() == pytest.approx([0.75, 0.25], abs=1e-3)


def test_threads_change_no_bit_and_are_as_many_afterwards(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, targets = digits
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            heads = solve_heads(features, targets, num_classes=10, strengths=(0.1,), loss=TrainingLoss())
            assert torch.get_num_threads() == threads
            found.append(heads.weight_SKD)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_blocks_of_images_give_the_same_heads(
    digits: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets = digits
    weights = torch.linspace(0.2, 1.8, len(features), dtype=torch.float64)
    found = []
    for block_logits in (10 * len(features), 10 * 77):  # one block, six blocks
        monkeypatch.setattr(linear_probe, "BLOCK_LOGITS", block_logits)
        heads = solve_heads(
            features, targets, num_classes=10, strengths=(1.0, 0.1), loss=TrainingLoss(), sample_weights=weights
        )
        assert heads.converged
        found.append(heads)
    one, six = found
    assert torch.allclose(one.weight_SKD, six.weight_SKD, atol=1e-4)
    assert torch.allclose(one.bias_SK, six.bias_SK, atol=1e-4)
    assert one.losses == pytest.approx(six.losses, rel=1e-6)


class Large(TorchDispatchMode):
    """Counts the tensors of at least so many numbers that operations make, views and changes in place left out."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.held = numbers, dict[int, torch.Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one.untyped_storage().data_ptr() for one in tree_leaves(args) if isinstance(one, torch.Tensor)]
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor) and one.numel() >= self.numbers:
                place = one.untyped_storage().data_ptr()
                if place not in given:
                    # held, so that no other takes its place
                    self.held[place] = one
        return made


def test_features_are_held_once_more_at_most(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, targets = digits
    for given, overwrite, copies in ((features, False, 1), (features.double(), False, 1), (features.double(), True, 0)):
        before = given.clone()
        with Large(features.numel()) as large:
            solve_heads(
                given,
                targets,
                num_classes=10,
                strengths=(0.1,),
                loss=TrainingLoss(),
                max_iterations=3,
                overwrite_features=overwrite,
            )
        assert len(large.held) == copies
        assert torch.equal(before, given) is not overwrite


def test_the_penalty_of_the_smallest_validation_loss_is_taken_not_of_the_largest_accuracy() -> None:
    solved = Solved(
        strengths=(1.0, 0.1, 0.01),
        metrics=[{"loss": 0.9, "acc": 0.70}, {"loss": 0.5, "acc": 0.80}, {"loss": 1.6, "acc": 0.81}],
        objectives=(0.9, 0.5, 1.6),
        train_loss=0.1,
        iterations=(5, 5, 5),
        converged=True,
    )
    assert solved.result.chosen == 0.1


def test_several_labels_are_solved_label_by_label(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, targets = digits
    labels = torch.stack([targets % 2, (targets > 4).long()], 1)
    heads = solve_heads(features, labels, num_classes=2, strengths=(0.1,), loss=MultiLabelLoss())
    standardised = ((features.double() - features.double().mean(0)) / feature_scale(features.double())).numpy()
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
    told = run.results.phases[0].probe
    assert told.chosen in told.strengths
    assert len(told.val_loss) == len(told.strengths) > 5
    assert told.val_loss[told.strengths.index(told.chosen)] == pytest.approx(min(told.val_loss))
    assert told.converged


@pytest.mark.parametrize(
    ("change", "solved"),
    [
        ("seed=0", True),
        ("schedule.phases.0.epochs=7", True),
        ("schedule.augment=standard", True),
        ("head=mlp", False),
        ("schedule.cache=off", False),
        ("schedule.mixup=0.2", False),
        ("schedule.phases.0.lr=0.1", False),
        ("schedule.phases.0.lr_trials=[0.1,0.01]", False),
        ("schedule.phases.1.carry_optimizer=true", False),
        ("schedule.phases.0.solver=gradient", False),
        ("cache.max_gb=1e-9", False),
    ],
)
def test_the_default_schedule_solves_its_head_where_it_can(words: Words, change: str, solved: bool) -> None:
    config = compose(words("schedule=gradual", change))
    parts = assemble(config)
    decision = decide(config, parts)
    assert [phase.solves_head for phase in decision.phases] == [solved, False, False]
    (first, *_) = build_plan(parts.classifier, decision.phases, parts.data, cache_policies=decision.cache_policies)
    assert first.settings.to_plain()["solver"] == ("lbfgs" if solved else "gradient")


def test_the_probe_is_where_lp_ft_and_the_default_start(words: Words, tmp_path: Path) -> None:
    train_tiny(words("schedule=probe"), tmp_path / "probe")
    train_tiny(words("schedule=lp_ft", "schedule.epochs=1"), tmp_path / "lp_ft")
    short = [f"schedule.phases.{number}.epochs=1" for number in range(3)]
    train_tiny(words("schedule=gradual", *short), tmp_path / "gradual")
    solved = load_file(tmp_path / "probe/final.safetensors")
    for second in ("lp_ft/phases/1-all", "gradual/phases/1-top"):
        start = load_file(tmp_path / second / "start.safetensors")
        assert all(torch.equal(solved[name], start[name]) for name in solved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("head=mlp", "solves only linear heads"),
        ("schedule.phases.0.train=[layer4,head]", "trains the head on fixed features"),
        ("schedule.mixup=0.2", "takes no mixup"),
    ],
)
def test_what_cannot_be_solved_is_refused(words: Words, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_tiny(words("schedule=probe", change), tmp_path / "run")
