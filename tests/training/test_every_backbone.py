"""A run on a backbone of each source: every phase moves what it names, and the bundle is the trained model."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.bundle import load_bundle
from finetune.models.classifier import Classifier
from tests.runs import train_tiny

Words = Callable[..., list[str]]

BACKBONES = {
    "timm": ["backbone=timm", "backbone.name=convnext_atto"],
    "torchvision": ["backbone=torchvision", "backbone.name=resnet18"],
    "transformers": ["backbone=transformers", "backbone.name=microsoft/resnet-18"],
    "residual": ["backbone=residual", "backbone.name=cifar_resnet14", "backbone.kwargs.activation=pre"],
}


def moved(before: Path, after: Path) -> set[str]:
    """Names of the tensors of which a bit differs."""
    old, new = load_file(before), load_file(after)
    assert set(old) == set(new)
    return {name for name in old if old[name].numpy().tobytes() != new[name].numpy().tobytes()}


def stages(classifier: Classifier, names: set[str]) -> set[str]:
    return {classifier.stage_of(name) for name in names}


@pytest.mark.parametrize("source", BACKBONES)
def test_each_phase_moves_its_stages_and_the_bundle_opens_as_the_trained_model(
    source: str, words: Words, tmp_path: Path
) -> None:
    more = ["backbone.weights=none", "schedule=gradual", "schedule.restore=last"]
    more += ["input.channels=1", "input.adapt=fold"]
    more += [f"schedule.phases.{n}.epochs=1" for n in range(3)]
    run = train_tiny(words(*BACKBONES[source], *more), tmp_path / "run")
    model = load_bundle(run.bundle)
    order = model.stages
    steps = [*sorted(run.run_dir.glob("phases/*/start.safetensors")), run.run_dir / "final.safetensors"]
    found = [stages(model, moved(before, after)) for before, after in itertools.pairwise(steps)]
    assert found == [set(order[-1:]), set(order[-2:]), set(order)]
    final = load_file(run.run_dir / "final.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("preset", "moves_gates"), [("gates", True), ("norm_only", False)])
def test_the_presets_of_few_parameters_move_these_and_no_others(
    preset: str, moves_gates: bool, words: Words, tmp_path: Path
) -> None:
    more = ["backbone=gated", "backbone.name=cifar_resnet14", "backbone.weights=none", f"schedule={preset}"]
    more += ["backbone.kwargs.scale_start=1.0", "schedule.restore=last", "schedule.phases.0.epochs=2"]
    run = train_tiny(words(*more), tmp_path / "run")
    names = moved(next(run.run_dir.glob("phases/*/start.safetensors")), run.run_dir / "final.safetensors")
    model = load_bundle(run.bundle)
    norms = {
        f"{path}.{leaf}"
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    gates = {name for name in model.state_dict() if name.endswith(".scale.gate")}
    assert len(gates) == 6
    assert names == norms | {"head.fc.weight", "head.fc.bias"} | (gates if moves_gates else set())
