"""A phase that was better than the last one is named, with the setting that stops after it."""

from dataclasses import replace

import yaml

from finetune.config import check_overrides, compose, to_yaml
from finetune.report.better_phase import better_phase, stops_after, wrapped_sentences
from tests.imaginary_results import imaginary_phase as phase

CONFIG = compose(["data=digits", "schedule.phases.1.stage_lr={head: 1e-5}", "schedule.phases.1.augment=light"])
PHASES = yaml.safe_load(to_yaml(CONFIG))["schedule"]["phases"]


def test_an_earlier_phase_that_was_better_is_named_with_both_figures() -> None:
    line = better_phase(
        [phase("head", val_acc=0.6), phase("top", val_acc=0.7778), phase("all", val_acc=0.7222)], PHASES
    )
    assert line.startswith(
        "val/acc was best after phase top: 0.7778. The model kept is that of the last phase, all: 0.7222."
    )


def test_its_lines_fit_a_terminal_and_the_setting_can_be_copied() -> None:
    line = better_phase([phase("head", val_acc=0.9), phase("top", val_acc=0.1), phase("all", val_acc=0.2)], PHASES)
    *lines, setting = wrapped_sentences(line).splitlines()
    assert max(map(len, [*lines, setting])) <= 80
    assert setting == f"  '{stops_after(PHASES, 0)}'"


def test_of_a_loss_less_is_better() -> None:
    assert "after phase head: 0.2000" in better_phase([phase("head", val_loss=0.2), phase("all", val_loss=0.3)], PHASES)
    assert better_phase([phase("head", val_loss=0.3), phase("all", val_loss=0.2)], PHASES) == ""


def test_a_phase_that_kept_its_start_is_no_later_phase() -> None:
    phases = [phase("head", val_acc=0.9), phase("top", val_acc=0.7), phase("all", val_acc=0.2)]
    phases[2] = replace(phases[2], restored="start")
    line = better_phase(phases, PHASES)
    assert "The model kept is that of a later phase, top: 0.7000." in line
    phases[1] = replace(phases[1], restored="start")
    assert better_phase(phases, PHASES) == ""


def test_a_last_phase_that_is_as_good_needs_no_line() -> None:
    assert better_phase([phase("head", val_acc=0.7), phase("all", val_acc=0.7)], PHASES) == ""


def test_a_difference_within_the_standard_error_needs_no_line() -> None:
    phases = [phase("head", val_acc=0.9926), phase("all", val_acc=0.9888)]
    # one image of 269
    assert better_phase(phases, PHASES, images=269) == ""
    assert "after phase head: 0.9926" in better_phase(phases, PHASES, images=10_000)


def test_a_metric_of_the_users_own_may_be_better_when_less() -> None:
    assert better_phase([phase("head", val_mae=0.9), phase("all", val_mae=0.1)], PHASES) == ""


def test_the_setting_keeps_the_phases_up_to_that_one_as_they_are() -> None:
    shorter = compose(check_overrides(["data=digits", stops_after(PHASES, 1)]))
    assert shorter.schedule.phases == CONFIG.schedule.phases[:2]
    assert shorter.schedule.name == CONFIG.schedule.name
