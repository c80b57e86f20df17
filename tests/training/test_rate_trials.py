"""Heads trained side by side at several rates: each is the head that a run at its own rate ends with."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.errors import ConfigError, Interrupted, RunError, UserError
from finetune.results import TrialResult
from finetune.runners.resume import resume
from finetune.training.rate_trials import RateTrials
from tests.runs import moved_stages, outcome, train_tiny

Words = Callable[..., list[str]]
FROZEN = ["schedule=frozen", "schedule.phases.0.epochs=3", "head.drop_rate=0.3"]
TRIALS = [*FROZEN, "schedule.phases.0.lr_trials=[1e-4,1e-2,3e-2]"]


@pytest.mark.parametrize(
    "more",
    [[], ["schedule.lr_schedule=plateau", "schedule.phases.0.gradient_clip=0.1", "schedule.phases.0.restore=last"]],
)
def test_the_head_that_is_kept_is_that_of_a_run_at_its_rate(words: Words, tmp_path: Path, more: list[str]) -> None:
    tried = train_tiny(words(*TRIALS, *more), tmp_path / "tried")
    phase = tried.results.phases[0]
    rate = phase.rates["head"]
    alone = train_tiny(words(*FROZEN, *more, f"schedule.phases.0.lr={rate}"), tmp_path / "alone")
    expected = alone.results.phases[0]
    assert (phase.best_epoch, phase.epochs, phase.steps) == (expected.best_epoch, expected.epochs, expected.steps)
    found, wanted = (load_file(tmp_path / name / "final.safetensors") for name in ("tried", "alone"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert tried.results.test.acc == alone.results.test.acc


def test_the_best_of_the_rates_is_kept_and_all_are_told(words: Words, tmp_path: Path) -> None:
    run = train_tiny(words(*TRIALS), tmp_path / "run")
    phase = run.results.phases[0]
    assert [trial.lr for trial in phase.trials] == [1e-4, 1e-2, 3e-2]
    best = max(trial.best for trial in phase.trials)
    chosen = next(trial for trial in phase.trials if trial.lr == phase.rates["head"])
    assert chosen.best == best == phase.best["val/acc"]
    start = tmp_path / "run/phases/0-head/start.safetensors"
    assert moved_stages(start, tmp_path / "run/final.safetensors") == {"head"}


def test_a_rate_that_ends_in_no_number_is_told_and_left(words: Words, tmp_path: Path) -> None:
    run = train_tiny(words(*FROZEN, "schedule.phases.0.lr_trials=[1e-2,1e38]", "optimizer=sgd"), tmp_path / "run")
    lost = run.results.phases[0].trials[1]
    assert lost == TrialResult(lr=1e38, best=None, best_epoch=None)
    with pytest.raises(RunError, match="the loss became NaN at every learning rate tried"):
        train_tiny(words(*FROZEN, "schedule.phases.0.lr_trials=[1e38]", "optimizer=sgd"), tmp_path / "all")


def test_a_rate_that_went_astray_inside_an_epoch_is_left_after_a_resume_there_too(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(*FROZEN, "schedule.phases.0.lr_trials=[1e-2,1e38]", "optimizer=sgd")
    train_tiny(asked, tmp_path / "whole")
    step, steps = RateTrials._step, 0

    def signalled(self: RateTrials, *args: Any, **given: Any) -> None:
        nonlocal steps
        steps += 1
        step(self, *args, **given)
        if steps == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RateTrials, "_step", signalled)
    with pytest.raises(Interrupted):
        train_tiny(asked, tmp_path / "run")
    assert torch.load(tmp_path / "run/phases/0-head/trials.ckpt", weights_only=True)["steps"] == 3
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_heads_whose_last_step_lies_inside_an_epoch_are_taken_up_again(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(*TRIALS, "schedule.phases.0.max_steps=7")
    train_tiny(asked, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("finetune.training.phase_runner.save_weights", lambda *args: 1 / 0)
        with pytest.raises(RunError, match="ZeroDivisionError"):
            train_tiny(asked, tmp_path / "run")
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_running_statistics_of_a_head_stay_where_batch_norm_is_eval(words: Words, tmp_path: Path) -> None:
    head = ["schedule=frozen", "schedule.phases.0.epochs=1", "head._target_=tests.training.building.NormedHead"]
    tried = train_tiny(words(*head, "schedule.phases.0.lr_trials=[1e-2]"), tmp_path / "tried")
    weights = load_file(tried.run_dir / "final.safetensors")
    assert not weights["head.norm.running_mean"].any()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["schedule.phases.0.train=[last,head]"], "for the head on fixed features"),
        (["schedule.phases.0.ema_decay=0.9"], "cannot be combined with ema_decay"),
        (["schedule.phases.0.solver=lbfgs"], "takes no rate"),
        (["schedule.phases.0.lr_trials=[0.1,0.1]"], "each of them once"),
        (["schedule.phases.0.stage_lr={head: 0.1}"], "only one of them"),
    ],
)
def test_what_trials_cannot_be_combined_with_is_said(
    words: Words, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_tiny(words(*TRIALS, *more), tmp_path / "run")


def test_trials_without_a_cache_are_refused(words: Words, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this phase has no cache"):
        train_tiny(words(*TRIALS, "schedule.cache=off"), tmp_path / "run")
