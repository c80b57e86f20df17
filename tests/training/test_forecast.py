"""The times of a plan follow from the parts that were timed; tests/benchmarks/plan_time.py compares them with runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.build import assemble
from finetune.build.training import optimizer_factory, trainer_factory
from finetune.cli import main
from finetune.config import compose
from finetune.runners.train import decide
from finetune.training.forecast import Forecast, fastest_of_three, forecast
from tests.conftest import make_pets

Words = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def no_trials_of_time() -> None:
    """Here they are what is tested: the fixture of all other tests is left out."""


def forecasts(words: list[str], *, cost_s: float = 1.0) -> list[Forecast]:
    """Forecasts on a machine on which every timed call takes so long."""

    def timer(call: Callable[[], object]) -> float:
        call()
        return cost_s

    config = compose(words)
    parts = assemble(config)
    decision = decide(config, parts)
    trainer = trainer_factory(config, Path(), precision=decision.precision.name, trusted=True)(
        logger=False, enable_checkpointing=False
    )
    before = {name: tensor.clone() for name, tensor in parts.classifier.state_dict().items()}
    found = forecast(
        classifier=parts.classifier,
        phases=decision.phases,
        cache_policies=decision.cache_policies,
        data=parts.data,
        trainer=trainer,
        make_optimizer=partial(optimizer_factory, trusted=True),
        timer=timer,
    )
    after = parts.classifier.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return found


def test_a_cache_is_paid_for_once_and_its_epochs_cost_what_trains(words: Words) -> None:
    given = ["schedule=frozen", "data.augment=none"]
    (short,) = forecasts(words(*given, "schedule.epochs=2"))
    (long,) = forecasts(words(*given, "schedule.epochs=20"))
    assert short.cache_s == long.cache_s > 0
    assert long.train_s == pytest.approx(10 * short.train_s)
    pool_words = words("schedule=frozen", "schedule.epochs=9", "data.augment=standard", "schedule.cache=3")
    (pool,) = forecasts(pool_words)
    (one,) = forecasts(words("schedule=frozen", "schedule.epochs=9", "data.augment=none"))
    # three views of each of the training images in place of one, and the validation images once
    assert pool.cache_s / one.cache_s == pytest.approx((3 * 36 + 6) / (36 + 6))


def test_a_solver_costs_its_iterations_on_all_features(words: Words) -> None:
    (solved,) = forecasts(words("schedule=probe", "data.augment=none"), cost_s=2.0)
    # ten iterations on all 36 features took two seconds
    assert solved.train_s == pytest.approx(2.0 / 10 * 340)


def test_without_a_cache_every_epoch_reads_and_computes(words: Words) -> None:
    (cached,) = forecasts(words("schedule=frozen", "schedule.epochs=10"))
    (uncached,) = forecasts(words("schedule=frozen", "schedule.epochs=10", "schedule.cache=off"))
    assert cached.cache_s > uncached.cache_s == 0
    assert uncached.train_s > cached.seconds


def test_loader_processes_read_while_the_network_computes(words: Words) -> None:
    given = words("schedule=full", "schedule.epochs=1")
    (alone,) = forecasts(given)
    (helped,) = forecasts([*given, "data.num_workers=2"])
    assert helped.seconds < alone.seconds


def test_phases_that_end_early_or_solve_or_try_rates_are_told_apart(words: Words) -> None:
    (whole,) = forecasts(words("schedule=full", "schedule.phases.0.epochs=4"))
    (half,) = forecasts(words("schedule=full", "schedule.phases.0.epochs=4", "schedule.max_steps=10"))
    assert half.seconds == pytest.approx(whole.seconds * 10 / (4 * 5))
    (solved,) = forecasts(words("schedule=probe"))
    assert solved.cache_s > 0
    assert solved.train_s > 0
    (one,) = forecasts(words("schedule=frozen"))
    (three,) = forecasts(words("schedule=frozen", "schedule.phases.0.lr_trials=[0.1,0.01,0.001]"))
    assert three.cache_s == one.cache_s
    assert three.train_s > one.train_s


@pytest.mark.parametrize(("cost_s", "calls"), [(0.01, 3), (0.5, 3), (0.6, 1), (60.0, 1)])
def test_a_slow_call_is_timed_once(cost_s: float, calls: int) -> None:
    passed = [0.0]

    def call() -> None:
        passed.append(passed[-1] + cost_s)

    assert fastest_of_three(call, clock=lambda: passed[-1]) == pytest.approx(cost_s)
    assert len(passed) - 1 == calls


def test_a_slow_machine_times_few_images(words: Words) -> None:
    def batch_sizes(image_s: float) -> set[int]:
        seen = set()

        def timer(call: Callable[[], object]) -> float:
            call()
            return 2 * image_s

        config = compose(words("schedule=full"))
        parts = assemble(config)
        parts.classifier.backbone.register_forward_pre_hook(lambda module, args: seen.add(len(args[0])))
        decision = decide(config, parts)
        trainer = trainer_factory(config, Path(), precision="32-true", trusted=True)(logger=False)
        forecast(
            classifier=parts.classifier,
            phases=decision.phases,
            cache_policies=decision.cache_policies,
            data=parts.data,
            trainer=trainer,
            make_optimizer=partial(optimizer_factory, trusted=True),
            timer=timer,
        )
        return seen

    assert batch_sizes(10.0) == {2}
    assert max(batch_sizes(0.001)) == 8


def test_a_plan_shows_no_rate_or_epochs_for_a_head_that_is_solved(
    words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words("schedule=probe")]) == 0
    out = capsys.readouterr().out
    assert (
        "phase 1 of 1: probe (schedule.phases.0)\n  solves the head on all 36 images at once\n  validation loss" in out
    )
    assert "epochs" not in out
    assert "cosine" not in out
    (head,) = (line.split() for line in out.splitlines() if line.strip().startswith("head "))
    assert head[1:4] == ["train", "-", "-"]


def test_a_plan_of_too_few_images_ends_as_its_training_would(
    tmp_path: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_pets(tmp_path / "two a class", count=2)
    for command in ("plan", "train"):
        assert main([command, *words(f"data.root={root}", f"run_dir={tmp_path / 'run'}")]) == 2
        assert "data.test_fraction: the test split is empty:" in capsys.readouterr().err


def test_a_plan_tells_the_time_of_each_phase(words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words("schedule=gradual")]) == 0
    out: Any = capsys.readouterr().out
    assert out.count("  time: about ") == 3
    assert out.count("fill the cache") == 2
    assert "in all, from an empty cache" in out
