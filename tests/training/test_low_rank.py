"""LoRA: only the low-rank products and the head train, the network is plain before and after, a resumed run ends alike."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune.errors import UserError
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.runners.resume import resume
from finetune.training.freezing import apply_phase, trainable_names, without_empty_stages, wrong_modes
from finetune.training.low_rank import adapter_names, low_rank
from tests.runs import outcome, train_tiny
from tests.training.killing import Strike, run_killed

Words = Callable[..., list[str]]

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
VIT = (
    "backbone=timm",
    "backbone.name=vit_tiny_patch16_224",
    "backbone.weights=none",
    *(f"+backbone.kwargs.{key}={value}" for key, value in SMALL.items()),
)


def vit() -> Classifier:
    backbone = finetune.build_backbone("vit_tiny_patch16_224", weights="none", **SMALL)
    return finetune.build_classifier(backbone, classes=["a", "b"], size=(32, 32))


def lora_phase(classifier: Classifier, **more: object) -> ResolvedPhase:
    stages = classifier.stages
    settings = {
        "name": "p",
        "train": stages,
        "stages": stages,
        "lr": 1e-2,
        "parameters": "lora",
        "lora_rank": 2,
        **more,
    }
    return ResolvedPhase(**settings)  # type: ignore[arg-type]


def bits(classifier: Classifier) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in classifier.state_dict().items()}


def test_products_and_head_alone_train_and_the_network_begins_as_the_plain_one() -> None:
    classifier = vit().eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        plain = classifier(images)
    phase = without_empty_stages(classifier, lora_phase(classifier))
    assert phase.train == ("blocks.0", "blocks.1", "head")
    with low_rank(classifier, phase, seed=0, merge=True):
        apply_phase(classifier, phase)
        assert wrong_modes(classifier, phase) == []
        names = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
        assert names == trainable_names(classifier, train=phase.train, parameters="lora")
        adapters = adapter_names(classifier)
        # four linear layers in each of two blocks, two factors each
        assert len(adapters) == 16
        assert {name.partition(".")[0] for name in names - adapters} == {"head"}
        assert {classifier.stage_of(name) for name in adapters} == {"blocks.0", "blocks.1"}
        with torch.inference_mode():
            assert torch.equal(classifier(images), plain)


@pytest.mark.parametrize("merge", [True, False])
def test_the_products_are_merged_or_leave_no_bit_behind(merge: bool) -> None:
    classifier = vit()
    before, weights = bits(classifier), {k: v.clone() for k, v in classifier.state_dict().items()}
    phase = without_empty_stages(classifier, lora_phase(classifier))
    with low_rank(classifier, phase, seed=0, merge=merge):
        assert bits(classifier).keys() != before.keys()
        layer = classifier.get_submodule("backbone.net.blocks.0.attn.qkv")
        product = layer.parametrizations.weight[0]  # type: ignore[union-attr,index]
        with torch.no_grad():
            product.up.fill_(0.5)  # type: ignore[union-attr]
        added = (product.up @ product.down).detach().clone()  # type: ignore[union-attr,operator]
    after = bits(classifier)
    assert after.keys() == before.keys()
    name = "backbone.net.blocks.0.attn.qkv.weight"
    changed = {key for key in after if after[key] != before[key]}
    assert changed == ({name} if merge else set())
    if merge:
        assert torch.equal(classifier.state_dict()[name], weights[name] + added)


def test_an_error_inside_leaves_the_weights_as_they_were() -> None:
    classifier = vit()
    before = bits(classifier)

    def train() -> None:
        with low_rank(classifier, lora_phase(classifier), seed=0, merge=True):
            next(p for n, p in classifier.named_parameters() if n.endswith(".up")).data.fill_(1.0)
            raise KeyError

    with pytest.raises(KeyError):
        train()
    assert bits(classifier) == before


def test_a_network_without_linear_layers_is_refused_before_a_run_begins(words: Words, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"parameters='lora': 'test_resnet' has no linear layers of more than lora_rank=8"
    ):
        train_tiny(words("schedule=full", "schedule.parameters=lora"), tmp_path / "run")
    assert not (tmp_path / "run/results.json").exists()


def test_a_run_that_is_killed_ends_at_the_bits_of_one_that_is_not(words: Words, tmp_path: Path) -> None:
    asked = [word for word in words() if not word.startswith(("backbone", "+backbone"))]
    asked += [*VIT, "schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=2"]
    asked += ["schedule.phases.1.parameters=lora", "schedule.phases.1.lora_rank=2", "checkpoint.every_n_steps=2"]
    asked += ["schedule.phases.1.ema_decay=0.9", "data.augment=standard"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_tiny(asked, whole)
    strikes = [Strike(60, signal.SIGKILL)]
    assert run_killed(asked, killed, kills=strikes, resume_with=resume) == 1
    assert outcome(killed) == outcome(whole)
    start, end = load_file(whole / "phases/1-all/start.safetensors"), load_file(whole / "final.safetensors")
    assert start.keys() == end.keys()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert {name for name in moved if not name.startswith("head.")} == {
        f"backbone.net.blocks.{block}.{layer}.weight"
        for block in (0, 1)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    for name in moved - {name for name in moved if name.startswith("head.")}:
        assert torch.linalg.matrix_rank(end[name] - start[name], rtol=1e-3) <= 2
    # the shipped network is the plain one
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert finetune.load(whole / "model")(images).shape == (2, 3)
