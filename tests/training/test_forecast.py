"""The times that a plan tells follow from the parts that were measured; that they come true is measured by hand."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.build import assemble, optimizer_factory, trainer_factory
from finetune.cli import main
from finetune.commands.train import decide
from finetune.config import compose
from finetune.training import forecast as module
from finetune.training.forecast import Forecast, forecast

Words = Callable[..., list[str]]


def forecasts(words: list[str], monkeypatch: pytest.MonkeyPatch, *, cost_s: float = 1.0) -> list[Forecast]:
    """Forecasts on a machine on which everything that is timed takes so long, on one core beside one loader process."""
    monkeypatch.setattr(module._Calibration, "_timed", lambda self, call: (call(), cost_s)[1])
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0, 1})
    config = compose(words)
    parts = assemble(config)
    precision, caches = decide(config, parts)
    trainer = trainer_factory(config, Path(), precision=precision.name, trusted=True)(
        logger=False, enable_checkpointing=False
    )
    before = {name: tensor.clone() for name, tensor in parts.classifier.state_dict().items()}
    found = forecast(
        classifier=parts.classifier,
        phases=parts.phases,
        caches=caches,
        data=parts.data,
        trainer=trainer,
        make_optimizer=partial(optimizer_factory, trusted=True),
    )
    after = parts.classifier.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return found


def test_a_cache_is_paid_for_once_and_its_epochs_cost_what_trains(
    words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["schedule=frozen", "data.augment=none"]
    (short,) = forecasts(words(*given, "schedule.epochs=2"), monkeypatch)
    (long,) = forecasts(words(*given, "schedule.epochs=20"), monkeypatch)
    assert short.cache_s == long.cache_s > 0
    assert long.train_s == pytest.approx(10 * short.train_s)
    pool_words = words("schedule=frozen", "schedule.epochs=9", "data.augment=standard", "schedule.cache=3")
    (pool,) = forecasts(pool_words, monkeypatch)
    (one,) = forecasts(words("schedule=frozen", "schedule.epochs=9", "data.augment=none"), monkeypatch)
    # three views of each of the training images in place of one, and the validation images once
    assert pool.cache_s / one.cache_s == pytest.approx((3 * 36 + 6) / (36 + 6))


def test_a_solver_costs_its_iterations_on_all_features(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SOLVED_ROWS", 12)
    seen = []

    def solve(features_ND: torch.Tensor, targets_N: torch.Tensor, *, max_iterations: int, **settings: Any) -> None:
        seen.append((len(features_ND), max_iterations))

    monkeypatch.setattr(module, "solve_heads", solve)
    (solved,) = forecasts(words("schedule=probe", "data.augment=none"), monkeypatch, cost_s=2.0)
    assert seen == [(12, 12), (12, 2)]
    # two measurements that took the same: iterations cost nothing, and three times as many features are there
    assert solved.train_s == pytest.approx(2.0 * 36 / 12)


def test_views_that_the_phase_before_has_looked_at_are_there(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    given = words("schedule=gradual", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=9")
    head, top, _ = forecasts(given, monkeypatch)
    # one of three views, and the validation images, in the first phase; the other two in the second
    assert top.cache_s / head.cache_s == pytest.approx(2 * 36 / (36 + 6))


def test_without_a_cache_every_epoch_reads_and_computes(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    (cached,) = forecasts(words("schedule=frozen", "schedule.epochs=10"), monkeypatch)
    (uncached,) = forecasts(words("schedule=frozen", "schedule.epochs=10", "schedule.cache=off"), monkeypatch)
    assert cached.cache_s > uncached.cache_s == 0
    assert uncached.train_s > cached.seconds


def test_loader_processes_read_while_the_network_computes(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    given = words("schedule=full", "schedule.epochs=1")
    (alone,) = forecasts(given, monkeypatch)
    (helped,) = forecasts([*given, "data.num_workers=2"], monkeypatch)
    assert helped.seconds < alone.seconds


def test_phases_that_end_early_or_solve_or_try_rates_are_told_apart(
    words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = forecasts(words("schedule=full", "schedule.phases.0.epochs=4"), monkeypatch)
    (half,) = forecasts(words("schedule=full", "schedule.phases.0.epochs=4", "schedule.max_steps=10"), monkeypatch)
    assert half.seconds == pytest.approx(whole.seconds * 10 / (4 * 5))
    (solved,) = forecasts(words("schedule=probe"), monkeypatch)
    assert solved.cache_s > 0
    assert solved.train_s > 0
    (one,) = forecasts(words("schedule=frozen"), monkeypatch)
    (three,) = forecasts(words("schedule=frozen", "schedule.phases.0.lr_trials=[0.1,0.01,0.001]"), monkeypatch)
    assert three.cache_s == one.cache_s
    assert three.train_s > one.train_s


def test_a_plan_tells_the_time_of_each_phase(words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words("schedule=gradual")]) == 0
    out: Any = capsys.readouterr().out
    assert out.count("  time: about ") == 3
    assert out.count("fill the cache") == 2
    assert "for all phases, from an empty cache" in out
