"""Rates as exact tables, and against torch's own schedulers."""

import pytest
import torch

from finetune.training.lr_schedules import scale


def torch_rates(make: object, steps: int, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = make(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("steps", [5, 17, 200])
def test_one_cycle_is_torchs(steps: int) -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=steps), steps)
    assert [scale("one_cycle", step=s, total_steps=steps) for s in range(steps)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_cosine_is_torchs(steps: int) -> None:
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=steps), steps)
    assert [scale("cosine", step=s, total_steps=steps) for s in range(steps)] == pytest.approx(expected, abs=1e-12)


def test_warm_up_rises_linearly_and_the_cosine_covers_the_rest() -> None:
    rates = [scale("cosine", step=s, total_steps=8, warmup_steps=4) for s in range(8)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.8535534, 0.5, 0.1464466], abs=1e-7)


def test_a_phase_of_one_step_has_a_positive_rate_in_every_schedule() -> None:
    for kind in ("cosine", "constant", "one_cycle", "plateau"):
        assert 0 < scale(kind, step=0, total_steps=1) <= 1


def test_plateau_is_what_it_is_handed() -> None:
    assert scale("plateau", step=5, total_steps=9, plateau_factor=0.01) == 0.01
