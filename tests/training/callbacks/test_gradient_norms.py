"""The logged gradient norms are those of the gradients, and do not make training wait."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from finetune.training.callbacks.gradient_norms import GradientNorms
from tests.export.trained import settled_classifier
from tests.runs import train_tiny


def with_gradients(scale: float) -> torch.nn.Module:
    classifier = settled_classifier(name="resnet10t")
    for number, parameter in enumerate(classifier.parameters()):
        parameter.grad = torch.full_like(parameter, scale * (1 + number % 3))
    return classifier


def norm_of(classifier: torch.nn.Module, stage: str) -> float:
    named = classifier.named_parameters()
    squares = [float(p.grad.double().square().sum()) for name, p in named if classifier.stage_of(name) == stage]
    assert squares
    return sum(squares) ** 0.5


def test_an_epoch_s_value_is_the_mean_norm_of_the_measured_steps() -> None:
    classifier = with_gradients(1.0)
    stages = ("layer4", "head")
    expected = {stage: norm_of(classifier, stage) for stage in stages}
    norms = GradientNorms(classifier, stages=stages, every=2)
    # measured: the first and the third step, at once and at three times the size
    for scale in (1.0, 100.0, 3.0):
        for parameter in classifier.parameters():
            parameter.grad.mul_(scale)
        norms.before_step()
        for parameter in classifier.parameters():
            parameter.grad.div_(scale)
    assert norms.epoch() == pytest.approx({stage: 2 * value for stage, value in expected.items()}, rel=1e-5)
    assert norms.epoch() == {}


def test_a_fused_optimizer_s_gradients_are_measured_without_the_scale_of_their_loss() -> None:
    # in 16-mixed such an optimizer divides by the scale itself, after this
    classifier = with_gradients(1.0)
    expected = norm_of(classifier, "head")
    norms = GradientNorms(classifier, stages=("head",), every=1)
    for parameter in classifier.parameters():
        parameter.grad.mul_(65536.0)
    scaled: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 65536.0)))
    fused: Any = SimpleNamespace(_step_supports_amp_scaling=True)
    norms.on_before_optimizer_step(scaled, Mock(), fused)
    assert norms.epoch() == pytest.approx({"head": expected}, rel=1e-6)
    # Lightning has divided them by now
    norms.on_before_optimizer_step(scaled, Mock(), Mock(spec=torch.optim.SGD))
    assert norms.epoch() == pytest.approx({"head": 65536 * expected}, rel=1e-6)


def test_a_step_that_overflowed_does_not_count() -> None:
    classifier = with_gradients(1.0)
    norms = GradientNorms(classifier, stages=("head",), every=1)
    norms.before_step()
    expected = norm_of(classifier, "head")
    next(classifier.head.parameters()).grad.fill_(float("inf"))
    norms.before_step()
    assert norms.epoch() == pytest.approx({"head": expected}, rel=1e-6)


def test_a_state_taken_back_inside_an_epoch_gives_the_same_bits() -> None:
    classifier = with_gradients(0.37)
    whole, first, second = (GradientNorms(classifier, stages=("layer1", "head"), every=2) for _ in range(3))
    for _ in range(5):
        whole.before_step()
    for _ in range(3):
        first.before_step()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.before_step()
    assert second.epoch() == whole.epoch()


def test_a_run_logs_the_norms_of_the_stages_that_train(words: Callable[..., list[str]], tmp_path: Path) -> None:
    more = ["schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=1"]
    run = train_tiny(words(*more), tmp_path / "run")
    with (run.run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    shown = [
        {name for name, value in row.items() if name.startswith("grad/") and float(value or 0) > 0} for row in rows
    ]
    stages = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
    assert shown == [{"grad/head"}, {f"grad/{stage}" for stage in stages}]
