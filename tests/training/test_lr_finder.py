"""The learning-rate search: one rate for all groups, and nothing left behind."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from finetune.build import RunParts, assemble
from finetune.build.phases import build_phases
from finetune.build.training import loss_of, optimizer_factory, trainer_factory
from finetune.config import compose
from finetune.data.sampling import TrainBatches
from finetune.training.freezing import module_mode_flags
from finetune.training.lr_finder import RangeTest, RangeTestModule, find_rate, smooth, steepest, table, valley
from finetune.training.quiet_lightning import quiet_lightning

Words = Callable[..., list[str]]

JOB = ("schedule=head_then_all", "schedule.phases.1.layer_decay=0.3", "data.augment=standard")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_lightning():
        yield


def swept(words: list[str], *, number: int = 1, **settings: Any) -> tuple[RangeTest, RunParts]:
    """A sweep of one phase of the network that overrides describe."""
    from pathlib import Path

    config = compose(words)
    parts = assemble(config)
    given = {"steps": 12, "lowest": 1e-5, "highest": 1e-1, **settings}
    sweep = find_rate(
        classifier=parts.classifier,
        data=parts.data,
        phase=parts.phases[number],
        seed=config.seed,
        make_trainer=trainer_factory(config, Path(), precision="32-true", trusted=True),
        make_optimizer=partial(optimizer_factory, trusted=True),
        make_loss=loss_of(config, parts.source),
        **given,
    )
    return sweep, parts


def state_of(parts: RunParts) -> dict[str, Any]:
    """All of a network that a search could leave changed, tensors by their bits."""
    tensors = [*parts.classifier.named_parameters(), *parts.classifier.named_buffers()]
    return {
        "tensors": {name: tensor.detach().numpy().tobytes() for name, tensor in tensors},
        "modes": module_mode_flags(parts.classifier),
        "flags": {name: p.requires_grad for name, p in parts.classifier.named_parameters()},
        "gradients": [name for name, p in parts.classifier.named_parameters() if p.grad is not None],
        "generator": torch.get_rng_state().numpy().tobytes(),
    }


@pytest.mark.parametrize("end", ["whole", "diverged", "interrupted"])
def test_the_network_is_the_same_to_the_bit_afterwards(end: str, words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    rough = ["schedule.batch_norm=train", "schedule.mixup=0.4", "schedule.ema_decay=0.9", "head.drop_rate=0.3"]
    seen: dict[str, Any] = {}
    real = RangeTestModule.training_step

    def watched(self: RangeTestModule, batch: Any, batch_idx: int) -> Any:
        step = real(self, batch, batch_idx)
        now = {n: t.detach().numpy().tobytes() for n, t in self.classifier.state_dict().items()}
        seen.setdefault("first", now)
        seen["moved"] = {name for name, value in now.items() if value != seen["first"][name]}
        if end == "interrupted" and len(self.losses) == 4:
            raise OSError("no more")
        return step

    monkeypatch.setattr(RangeTestModule, "training_step", watched)
    config = compose(words(*JOB, *rough))
    parts = assemble(config)
    # as a caller may have left it: one module training, one parameter frozen
    parts.classifier.head.train()
    next(parts.classifier.parameters()).requires_grad_(False)
    monkeypatch.setattr("tests.training.test_lr_finder.assemble", lambda config: parts)
    before = state_of(parts)
    try:
        sweep, _ = swept(words(*JOB, *rough), highest=1e6 if end == "diverged" else 1e-1)
        assert sweep.diverged is (end == "diverged")
    except OSError:
        assert end == "interrupted"
    # weights of every stage and running statistics did move in between
    assert {"backbone.net.conv1.0.weight", "backbone.net.bn1.running_mean", "head.1.weight"} & seen["moved"]
    assert len(seen["moved"]) > 0.9 * len(seen["first"])
    after = state_of(parts)
    for name in before:
        assert after[name] == before[name], name


def test_all_groups_rise_together_in_the_ratios_of_the_phase_as_the_optimizer_used_them(
    words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[dict[str, float]] = []
    real = RangeTestModule.optimizer_step

    def watched(self: RangeTestModule, *args: Any, **kwargs: Any) -> None:
        used.append({group["name"]: group["lr"] for group in self.trainer.optimizers[0].param_groups})
        real(self, *args, **kwargs)

    monkeypatch.setattr(RangeTestModule, "optimizer_step", watched)
    sweep, parts = swept(words(*JOB))
    rates = parts.phases[1].rates()
    assert sweep.stage == "head"
    assert len(used) == len(sweep.rates) == 12
    np.testing.assert_allclose(sweep.rates, np.geomspace(1e-5, 1e-1, 12), rtol=1e-9)
    for row, groups, rate in zip(table(sweep), used, sweep.rates, strict=True):
        for name, lr in groups.items():
            stage = name.split("/")[0]
            assert lr == pytest.approx(rate * rates[stage] / rates["head"], rel=1e-12)
            assert row[f"lr/{stage}"] == pytest.approx(lr, rel=1e-12)
        assert {name.split("/")[0] for name in groups} == set(rates)


def test_it_sweeps_over_the_batches_that_the_phase_would_train_on(
    words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = RangeTestModule.training_step

    def watched(self: RangeTestModule, batch: Any, batch_idx: int) -> Any:
        seen.append(batch.rows.tolist())
        return real(self, batch, batch_idx)

    monkeypatch.setattr(RangeTestModule, "training_step", watched)
    sweep, parts = swept(words(*JOB, "schedule.accumulate=2", "data.num_workers=2"), steps=10)
    # two batches a step; the odd one at an epoch's end is a step of its own
    batches = TrainBatches(rows=parts.source.index.rows("train"), batch_size=8, seed=0, phase="all")
    expected = [key.rows.tolist() for _ in range(4) for key in batches]
    assert seen == expected[: len(seen)]
    assert len(sweep.losses) == 10
    assert 15 <= len(seen) <= 20


def test_the_same_search_gives_the_same_losses(words: Words) -> None:
    first, second = (swept(words(*JOB, "head.drop_rate=0.3"))[0].losses for _ in range(2))
    assert first.tolist() == second.tolist()


def test_a_diverging_loss_ends_the_sweep(words: Words) -> None:
    sweep, _ = swept(words(*JOB), steps=60, highest=1e8)
    assert sweep.diverged
    assert 10 < len(sweep.losses) < 60
    assert np.isfinite(sweep.losses).all()


@pytest.mark.parametrize(
    "own",
    [
        ["schedule.phases.1.lr=0.02"],
        ["schedule.phases.1.lr_slice=[1e-5,1e-3]"],
        ["schedule.phases.1.stage_lr.layer4=0.5", "schedule.phases.1.layer_decay=0.5"],
        ["schedule.phases.1.train=[layer3,layer4]", "schedule.lr=0.1"],
    ],
)
def test_the_overrides_set_the_suggested_rates(own: list[str], words: Words) -> None:
    def phase_of(*more: str) -> Any:
        config = compose(words(*JOB, *own, *more))
        stages = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
        return build_phases(config, stages=stages, network="resnet10t")[1]

    phase = phase_of()
    rates = phase.rates()
    stage = max(rates, key=lambda name: rates[name])
    sweep = RangeTest(phase=phase, stage=stage, rates=np.ones(1), losses=np.ones(1), diverged=False)
    wanted = sweep.stage_rates(0.037)
    assert wanted[stage] == pytest.approx(0.037)
    assert phase_of(*sweep.overrides(0.037, 1)).rates() == pytest.approx(wanted, rel=5e-3)


def curve() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A sweep as in the books: flat, a fall around 1e-3, an explosion beyond 1e-1."""
    rates = np.geomspace(1e-7, 10, 100)
    losses = 2.3 - 1.5 / (1 + (1e-3 / rates) ** 1.5) + np.where(rates > 0.1, (rates / 0.1) ** 3, 0)
    return rates, losses


def test_the_rules_find_the_fall_of_a_known_curve_under_noise() -> None:
    rates, losses = curve()
    # the fall is steepest at 1e-3, where half of it is done
    for seed in range(5):
        noisy = smooth(losses + np.random.default_rng(seed).normal(0, 0.05, 100))
        steep, middle = steepest(np.log(rates), noisy), valley(noisy)
        assert steep is not None
        assert middle is not None
        assert 3e-4 < rates[steep] < 3e-3
        assert 1e-4 < rates[middle] < 1e-2


def test_an_explosion_does_not_reach_back_to_lower_rates() -> None:
    losses = np.array([1.0] * 20 + [0.5] * 20 + [1e9] * 5)
    assert smooth(losses)[:36] == pytest.approx(smooth(np.array([1.0] * 20 + [0.5] * 20 + [2.0] * 5))[:36])
    assert smooth(losses).max() <= 2.0


def test_a_loss_that_never_falls_has_no_suggestion(words: Words) -> None:
    phase = build_phases(compose(words(*JOB)), stages=("stem", "head"), network="two")[0]
    rising = RangeTest(
        phase=replace(phase), stage="head", rates=np.geomspace(1, 2, 20), losses=np.linspace(1, 2, 20), diverged=False
    )
    assert rising.suggestions() == {}
