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
# its MLPs are convolutions of one pixel, as those of timm's small ConvNeXts are
CONVNEXT = (
    "backbone=timm",
    "backbone.name=convnext_atto",
    "backbone.weights=none",
    "+backbone.kwargs.depths=[1,1,1,1]",
    "+backbone.kwargs.dims=[4,8,12,16]",
)


def vit() -> Classifier:
    backbone = finetune.build_backbone("vit_tiny_patch16_224", weights="none", **SMALL)
    return finetune.build_classifier(backbone, classes=["a", "b"], size=(32, 32))


def convolutional(name: str) -> Classifier:
    small = {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)} if name == "convnext_atto" else {}
    backbone = finetune.build_backbone(name, weights="none", **small)
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


@pytest.mark.parametrize("name", ["convnext_atto", "test_resnet"])
def test_convolutions_of_one_pixel_take_a_product_which_is_merged_exactly(name: str) -> None:
    classifier = convolutional(name)
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    phase = without_empty_stages(classifier, lora_phase(classifier, batch_norm="train"))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with low_rank(classifier, phase, seed=0, merge=True):
        apply_phase(classifier, phase)
        adapted = {n.partition(".parametrizations")[0] for n in adapter_names(classifier)}
        for key in adapter_names(classifier):
            classifier.get_parameter(key).data.normal_()
        classifier(images)
        with torch.inference_mode():
            adapted_logits = classifier.eval()(images)
    convolutions = {n: m for n, m in classifier.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert adapted & set(convolutions)
    assert {convolutions[n].kernel_size for n in adapted & set(convolutions)} == {(1, 1)}
    after = classifier.state_dict()
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    statistics = {k for k in moved if "running_" in k or k.endswith("num_batches_tracked")}
    assert moved - statistics == {f"{n}.weight" for n in adapted}
    # BatchNorm of the stages that train counts on, as in any phase with batch_norm=train
    counted = set(phase.train) - {"head"} if name == "test_resnet" else set()
    assert {classifier.stage_of(k) for k in statistics} == counted
    with torch.inference_mode():
        assert torch.equal(classifier(images), adapted_logits)


def test_the_phases_that_train_the_head_alone_ignore_it(words: Words, tmp_path: Path) -> None:
    asked = [word for word in words() if not word.startswith(("backbone", "+backbone"))]
    for schedule in ("gradual", "lp_ft"):
        run = tmp_path / schedule
        more = [f"schedule={schedule}", "schedule.parameters=lora", "schedule.lora_rank=2", "epochs=1"]
        train_tiny([*asked, *VIT, *more], run)
        head, end = load_file(next(run.glob("phases/1-*/start.safetensors"))), load_file(run / "final.safetensors")
        moved = {name for name in end if not torch.equal(head[name], end[name])}
        assert {name.split(".")[2] for name in moved if not name.startswith("head.")} == {"blocks"}


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
        UserError, match=r"parameters='lora': 'test_resnet' has no linear layers of more than lora_rank=999"
    ):
        train_tiny(words("schedule.parameters=lora", "schedule.lora_rank=999"), tmp_path / "run")
    assert not (tmp_path / "run/results.json").exists()


def test_a_convnext_that_is_killed_ends_at_the_bits_of_one_that_is_not(words: Words, tmp_path: Path) -> None:
    asked = [word for word in words() if not word.startswith(("backbone", "+backbone"))]
    asked += [*CONVNEXT, "schedule=full", "schedule.parameters=lora", "schedule.lora_rank=2", "epochs=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_tiny([*asked, "checkpoint.every_n_steps=2"], whole)
    strikes = [Strike(30, signal.SIGKILL)]
    assert run_killed([*asked, "checkpoint.every_n_steps=2"], killed, kills=strikes, resume_with=resume) == 1
    assert outcome(killed) == outcome(whole)
    start, end = load_file(whole / "phases/0-all/start.safetensors"), load_file(whole / "final.safetensors")
    moved = {name for name in start if not torch.equal(start[name], end[name]) and not name.startswith("head.")}
    assert moved
    assert {start[name].shape[2:] for name in moved} == {(1, 1)}


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
