"""Frozen means frozen: asserted on the bits of weights and buffers after real training steps."""

import itertools
import random
from pathlib import Path

import pytest
import torch

import finetune
from finetune.models.classifier import Classifier
from finetune.training.freezing import apply_phase, tensors_of, trainable_names, wrong_modes
from tests.training.building import fit, phase_for, tiny_classifier

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
# every stage alone, everything, and as many seeded subsets as there are stages
SUBSETS = [(stage,) for stage in STAGES] + [STAGES]
SUBSETS += random.Random(0).sample([c for n in range(2, 6) for c in itertools.combinations(STAGES, n)], 6)


def bits(classifier: Classifier) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in classifier.state_dict().items()}


def moved(classifier: Classifier, before: dict[str, bytes]) -> set[str]:
    return {name for name, now in bits(classifier).items() if now != before[name]}


@pytest.mark.parametrize("train", SUBSETS, ids=lambda subset: "+".join(subset))
def test_three_steps_move_every_trainable_stage_and_no_bit_of_a_frozen_one(train: tuple[str, ...], pets: Path) -> None:
    classifier = tiny_classifier(drop_rate=0.3)
    before = bits(classifier)
    phase = phase_for(classifier, train, batch_norm="train", weight_decay=0.5, max_steps=3)
    fit(classifier, phase, pets)
    changed = moved(classifier, before)
    assert {classifier.stage_of(name) for name in changed} == set(train)
    # every parameter and every running statistic of a trainable stage takes part, not just one of them
    expected = {name for name in before if classifier.stage_of(name) in train}
    assert changed == expected


@pytest.mark.parametrize(
    ("source", "name"),
    [("timm", "resnetv2_50"), ("torchvision", "resnet18"), ("timm", "convnext_atto"), ("timm", "efficientnet_b0")],
)
def test_other_networks_freeze_by_their_own_stages(source: str, name: str, pets: Path) -> None:
    classifier = tiny_classifier(source=source, name=name)
    last = classifier.stages[-2]
    before = bits(classifier)
    fit(classifier, phase_for(classifier, (last, "head"), batch_norm="train", max_steps=3, weight_decay=0.5), pets)
    assert {classifier.stage_of(name) for name in moved(classifier, before)} == {last, "head"}


def test_frozen_stages_do_not_drift_under_an_average_of_weights(pets: Path) -> None:
    classifier = tiny_classifier()
    before = bits(classifier)
    module = fit(
        classifier, phase_for(classifier, ("layer4", "head"), ema_decay=0.9, batch_norm="train", max_steps=3), pets
    )
    assert module.averages is not None
    classifier.load_state_dict(module.averages, strict=False)
    assert {classifier.stage_of(name) for name in moved(classifier, before)} == {"layer4", "head"}


@pytest.mark.parametrize(("mode", "statistics_move"), [("train", True), ("eval", False)])
def test_batch_norm_decides_whether_statistics_of_trainable_stages_move(
    mode: str, statistics_move: bool, pets: Path
) -> None:
    classifier = tiny_classifier()
    before = bits(classifier)
    fit(classifier, phase_for(classifier, STAGES, batch_norm=mode, max_steps=3), pets)
    buffers = {name for name, _ in classifier.named_buffers() if name in before}
    changed = moved(classifier, before)
    assert changed & buffers == (buffers if statistics_move else set())
    assert changed - buffers == set(dict(classifier.named_parameters()))


def test_a_frozen_network_gives_the_same_features_in_training_and_evaluation() -> None:
    classifier = tiny_classifier(drop_rate=0.5)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    apply_phase(classifier, phase_for(classifier, ("head",), batch_norm="train"))
    with torch.no_grad():
        during = classifier.embed(images)
        assert not torch.equal(classifier(images), classifier(images)), "the head's dropout is active"
        classifier.eval()
        assert torch.equal(during, classifier.embed(images))


def test_a_frozen_prefix_records_no_graph() -> None:
    classifier = tiny_classifier()
    apply_phase(classifier, phase_for(classifier, ("head",)))
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert classifier.embed(images).grad_fn is None
    assert classifier(images).grad_fn is not None


def test_norms_alone_train_with_the_head() -> None:
    classifier = tiny_classifier()
    names = trainable_names(classifier, train=STAGES, parameters="norms")
    expected = {
        f"{path}.{name}"
        for path, module in classifier.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for name, _ in module.named_parameters()
    }
    assert names == expected | {name for name, _ in classifier.named_parameters() if name.startswith("head.")}
    assert len(expected) > 20


def test_the_gates_of_a_network_without_norms_train() -> None:
    backbone = finetune.build_backbone("cifar_resnet8", source="residual", weights="none", norm="none", scaling="fixup")
    classifier = finetune.build_classifier(backbone, classes=["a", "b"], size=(32, 32))
    names = trainable_names(classifier, train=classifier.stages, parameters="gates")
    assert len(names) > 10
    assert not [name for name in names if "conv" in name]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "resnet10t"])
def test_biases_alone_train_with_the_head(name: str) -> None:
    classifier = finetune.build_classifier(finetune.build_backbone(name, weights="none"), classes=["a", "b"])
    names = trainable_names(classifier, train=classifier.stages, parameters="bias")
    shapes = {name: tuple(parameter.shape) for name, parameter in classifier.named_parameters()}
    backbone = {name for name in names if not name.startswith("head.")}
    assert backbone
    # a vector each, which a weight of a matrix or a kernel is not; and no vector is left but the scales of the norms
    assert {len(shapes[name]) for name in backbone} == {1}
    left = {name for name in shapes if len(shapes[name]) == 1} - names
    assert all(name.endswith(".weight") for name in left), left
    assert {name for name in names if name.startswith("head.")} == {name for name in shapes if name.startswith("head.")}


def test_no_optimizer_state_is_kept_for_a_frozen_parameter(pets: Path) -> None:
    classifier = tiny_classifier()
    held: list[torch.optim.Optimizer] = []

    def remembering(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        held.append(torch.optim.AdamW(groups))
        return held[0]

    fit(classifier, phase_for(classifier, ("layer4", "head"), max_steps=2), pets, optimizer=remembering)
    with_state = {id(parameter) for parameter in held[0].state}
    names = {name for name, parameter in classifier.named_parameters() if id(parameter) in with_state}
    assert names == {
        name for name, _ in classifier.named_parameters() if classifier.stage_of(name) in ("layer4", "head")
    }


def test_a_stale_gradient_cannot_move_a_parameter_that_was_frozen_since() -> None:
    classifier = tiny_classifier()
    for parameter in classifier.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_phase(classifier, phase_for(classifier, ("head",)))
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_wrong_modes_are_found_by_name() -> None:
    classifier = tiny_classifier()
    phase = phase_for(classifier, ("layer4", "head"))
    apply_phase(classifier, phase)
    assert wrong_modes(classifier, phase) == []
    classifier.backbone.net.layer1.train()
    assert all(name.startswith("backbone.net.layer1") for name in wrong_modes(classifier, phase))
    assert len(wrong_modes(classifier, phase)) > 3
    apply_phase(classifier, phase)
    next(classifier.head.parameters()).requires_grad_(False)
    assert wrong_modes(classifier, phase) == [
        next(n for n, _ in classifier.named_parameters() if n.startswith("head."))
    ]


def test_tensors_of_all_stages_are_the_whole_state() -> None:
    classifier = tiny_classifier()
    assert set(tensors_of(classifier, STAGES)) == set(classifier.state_dict())
