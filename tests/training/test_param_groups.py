"""Groups cover the trainable parameters exactly, by identity."""

import pytest
import torch

from finetune.errors import UserError
from finetune.training.freezing import apply_phase
from finetune.training.param_groups import build_param_groups, check_cover
from tests.training.building import phase_for, tiny_classifier


def groups_of(train: tuple[str, ...]) -> tuple[torch.nn.Module, list[dict[str, object]]]:
    classifier = tiny_classifier()
    phase = phase_for(classifier, train)
    apply_phase(classifier, phase)
    return classifier, build_param_groups(classifier, rates=phase.rates(), weight_decay=0.1)


def test_groups_are_named_by_stage_and_decay_and_ordered_from_the_input() -> None:
    _, groups = groups_of(("layer3", "layer4", "head"))
    assert [group["name"] for group in groups] == [
        f"{stage}/{kind}" for stage in ("layer3", "layer4", "head") for kind in ("decay", "no_decay")
    ]


def test_norms_and_biases_do_not_decay_and_weights_do() -> None:
    classifier, groups = groups_of(("layer4", "head"))
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    for group in groups:
        for parameter in group["params"]:  # type: ignore[attr-defined]
            one_dimensional = parameter.ndim <= 1
            assert group["weight_decay"] == (0.0 if one_dimensional else 0.1), names[id(parameter)]


def test_two_equal_parameters_are_both_in_a_group() -> None:
    # Lightning's callback compares by value: a second bias of zeros is left out there
    classifier, groups = groups_of(("layer4", "head"))
    zeros = [p for g in groups for p in g["params"] if p.ndim == 1 and not p.any()]  # type: ignore[attr-defined]
    assert len(zeros) > 2
    check_cover(torch.optim.SGD(groups), classifier)


def test_a_trainable_parameter_of_no_group_is_named() -> None:
    classifier, groups = groups_of(("head",))
    classifier.get_parameter("backbone.net.layer4.0.conv1.weight").requires_grad_(True)
    with pytest.raises(UserError, match=r"in no optimizer group: backbone.net.layer4.0.conv1.weight"):
        check_cover(torch.optim.SGD(groups), classifier)
    with pytest.raises(
        UserError, match=r"backbone.net.layer4.0.conv1.weight: trainable, but their stage has no learning rate"
    ):
        build_param_groups(classifier, rates={"head": 0.1}, weight_decay=0.0)  # type: ignore[arg-type]


def test_a_frozen_parameter_in_the_optimizer_is_named() -> None:
    classifier, groups = groups_of(("layer4", "head"))
    classifier.get_parameter("backbone.net.layer4.0.conv1.weight").requires_grad_(False)
    with pytest.raises(UserError, match=r"though frozen: backbone.net.layer4.0.conv1.weight"):
        check_cover(torch.optim.SGD(groups), classifier)


def test_a_stage_that_matches_no_parameter_is_named() -> None:
    classifier, _ = groups_of(("head",))
    with pytest.raises(UserError, match="layer3: named as trainable, but without a trainable parameter"):
        build_param_groups(classifier, rates={"layer3": 0.1, "head": 0.1}, weight_decay=0.0)  # type: ignore[arg-type]
