"""Schedules resolved against a network."""

import itertools
from typing import Any

import pytest

from finetune.errors import ConfigError
from finetune.phases import ResolvedPhase, build_schedule, expand_stages

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
DEFAULTS: dict[str, Any] = {"epochs": 2, "lr": 0.1, "batch_size": 8, "augment": "none"}


def schedule(*phases: dict[str, Any], freeze: tuple[str, ...] = ()) -> list[ResolvedPhase]:
    named = [{"name": f"p{n}", **phase} for n, phase in enumerate(phases)]
    return build_schedule(phases=named, defaults=DEFAULTS, freeze=freeze, stages=STAGES, network="resnet18")


@pytest.mark.parametrize("blocks", [1, 4, 8, 12, 24])
def test_layer_decay_reaches_the_first_stage_of_every_network_alike(blocks: int) -> None:
    stages = ("stem", *(f"blocks.{number}" for number in range(blocks)), "head")
    rates = ResolvedPhase(name="p", train=stages, stages=stages, lr=1.0, layer_decay=0.5).rates()
    assert rates["stem"] == pytest.approx(1 / 32)
    assert rates["head"] == 1
    steps = [later / earlier for earlier, later in itertools.pairwise(rates.values())]
    assert steps == pytest.approx([steps[0]] * len(steps))


@pytest.mark.parametrize(("blocks", "last"), [(1, 1), (4, 1), (8, 2), (12, 3), (24, 5)])
def test_last_is_a_fifth_of_the_depth(blocks: int, last: int) -> None:
    stages = ["stem", *(f"blocks.{number}" for number in range(blocks)), "head"]
    named, _ = expand_stages(["last"], stages, where="train", network="vit")
    assert named == stages[-1 - last : -1]


def test_layer_decay_multiplies_by_the_distance_from_the_head() -> None:
    (phase,) = schedule({"train": ["all"], "layer_decay": 0.5})
    assert phase.rates() == {
        "stem": 0.1 / 32,
        "layer1": 0.1 / 16,
        "layer2": 0.1 / 8,
        "layer3": 0.1 / 4,
        "layer4": 0.05,
        "head": 0.1,
    }


def test_the_distance_counts_frozen_stages_too() -> None:
    (phase,) = schedule({"train": ["layer2", "head"], "layer_decay": 0.5})
    assert phase.rates() == {"layer2": 0.1 / 8, "head": 0.1}


def test_an_explicit_rate_of_a_stage_wins() -> None:
    (phase,) = schedule({"train": ["layer4", "head"], "layer_decay": 0.5, "stage_lr": {"layer4": 7e-3}})
    assert phase.rates() == {"layer4": 7e-3, "head": 0.1}


def test_a_slice_spaces_rates_evenly_by_ratio_as_fastai_does() -> None:
    (phase,) = schedule({"train": ["layer3", "layer4", "head"], "lr_slice": [1e-4, 1e-2]})
    assert phase.rates() == pytest.approx({"layer3": 1e-4, "layer4": 1e-3, "head": 1e-2}, rel=1e-12)
    assert phase.rates()["head"] == 1e-2


def test_freeze_takes_stages_out_of_every_phase() -> None:
    phases = schedule({"train": ["all"]}, {"train": ["layer4", "head"]}, freeze=("stem", "layer4"))
    assert [phase.train for phase in phases] == [("layer1", "layer2", "layer3", "head"), ("head",)]
    assert phases[1].frozen == ("stem", "layer1", "layer2", "layer3", "layer4")


def test_all_wrong_names_are_told_together_with_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError) as caught:
        schedule({"train": ["layer5", "head"]}, {"train": ["haed"]}, freeze=("stm",))
    assert caught.value.problems == (
        "freeze[0]='stm': not a stage of 'resnet18'. Stages: stem, layer1, layer2, layer3, layer4, head. Did you mean 'stem'?",
        "schedule.phases[0].train[0]='layer5': not a stage of 'resnet18'. Stages: stem, layer1, layer2, layer3, layer4, head."
        " Did you mean 'layer4'?",
        "schedule.phases[1].train[0]='haed': not a stage of 'resnet18'. Stages: stem, layer1, layer2, layer3, layer4, head."
        " Did you mean 'head'?",
    )


def test_a_freeze_that_leaves_a_phase_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule.phases\[0\].train=\['head'\]: nothing is left to train"):
        schedule({"train": ["head"]}, {"train": ["all"]}, freeze=("head",))


def test_a_rate_for_a_stage_that_does_not_train_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"schedule.phases\[0\].stage_lr.layer3: this phase does not train that stage"
    ):
        schedule({"train": ["head"], "stage_lr": {"layer3": 0.1}})


def test_a_setting_that_is_zero_is_not_taken_for_one_that_is_missing() -> None:
    phases = build_schedule(
        phases=[{"name": "a", "train": ["head"], "weight_decay": 0.0, "label_smoothing": None}],
        defaults={**DEFAULTS, "weight_decay": 0.5, "label_smoothing": 0.1},
        freeze=(),
        stages=STAGES,
        network="resnet18",
    )
    assert (phases[0].weight_decay, phases[0].label_smoothing) == (0.0, 0.1)
