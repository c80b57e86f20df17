"""How far stages moved, compared with distances computed by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune.errors import UserError
from finetune.report.movement import movements
from tests.export.trained import settled_classifier


def test_distances_are_relative_to_the_weights_before_and_count_no_buffers(tmp_path: Path) -> None:
    classifier = settled_classifier(name="resnet10t")
    states = [{name: tensor.clone() for name, tensor in classifier.state_dict().items()} for _ in range(3)]
    parameters = {name for name, _ in classifier.named_parameters()}
    for name in states[1]:
        if name in parameters and classifier.stage_of(name) == "head":
            states[1][name] *= 1.5
            states[2][name] *= 3.0
        elif name in parameters and classifier.stage_of(name) == "layer1":
            states[2][name] *= 0.9
        elif name.endswith("running_mean"):
            states[1][name] += 1.0
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for state, file in zip(states, files, strict=True):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    still = dict.fromkeys(classifier.stages, 0.0)
    first, second, whole = movements(classifier, files)
    assert first == pytest.approx(still | {"head": 0.5})
    assert second == pytest.approx(still | {"head": 1.0, "layer1": 0.1}, rel=1e-5)
    assert whole == pytest.approx(still | {"head": 2.0, "layer1": 0.1}, rel=1e-5)
    # exactly zero, not just close to it
    assert [stage for stage, value in first.items() if value == 0] == [s for s in classifier.stages if s != "head"]


def test_a_stage_that_started_at_zero_has_no_relative_distance(tmp_path: Path) -> None:
    classifier = settled_classifier(name="resnet10t")
    state = {name: tensor.clone().contiguous() for name, tensor in classifier.state_dict().items()}
    zero = {name: torch.zeros_like(t) if name.startswith("head.") else t.clone() for name, t in state.items()}
    save_file(zero, tmp_path / "zero.safetensors")
    save_file(state, tmp_path / "after.safetensors")
    (moved, _) = movements(classifier, [tmp_path / "zero.safetensors", tmp_path / "after.safetensors"])
    assert moved["head"] is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: torch.full_like(weights, torch.nan), r"after\.safetensors: damaged\. .*not finite"),
        # subtraction would broadcast it
        (
            lambda weights: weights[:1].clone(),
            r"one of these is damaged, or not of this network.* in before\.safetensors",
        ),
    ],
)
def test_weights_that_are_no_numbers_or_of_another_shape_are_named(
    damage: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    classifier = settled_classifier(name="resnet10t")
    state = {name: tensor.clone().contiguous() for name, tensor in classifier.state_dict().items()}
    save_file(state, tmp_path / "before.safetensors")
    name = next(name for name, _ in classifier.named_parameters())
    save_file({**state, name: damage(state[name])}, tmp_path / "after.safetensors")
    with pytest.raises(UserError, match=message):
        movements(classifier, [tmp_path / "before.safetensors", tmp_path / "after.safetensors"])
