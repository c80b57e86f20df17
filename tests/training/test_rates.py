"""The plan's rates, the logged rates and the rates that the optimizer used are the same numbers."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.training.lr_schedules import scale
from tests.runs import train_tiny

Words = Callable[..., list[str]]


@pytest.mark.parametrize("lr_schedule", ["cosine", "constant", "one_cycle"])
def test_planned_logged_and_used_rates_are_equal_in_every_phase_epoch_and_group(
    lr_schedule: str, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[dict[str, float]] = []
    real = torch.optim.AdamW.step

    def spying(optimizer: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        result = real(optimizer, *args, **kwargs)
        used.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spying)
    given = [
        "schedule=gradual",
        "schedule.phases.0.solver=gradient",
        "schedule.layer_decay=0.3",
        f"schedule.lr_schedule={lr_schedule}",
        "schedule.warmup_epochs=1",
    ]
    for number in range(3):
        given += [f"schedule.phases.{number}.layer_decay=0.3", f"schedule.phases.{number}.epochs=2"]
    given += ["backbone.name=resnet18", "schedule.phases.1.accumulate=2"]
    run_dir = train_tiny(words(*given), tmp_path / "run").run_dir

    plan = json.loads((run_dir / "plan.json").read_text())
    with (run_dir / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert len(logged) == 6
    assert len(used) == sum(phase["steps"] for phase in plan)
    print(f"\n{lr_schedule}: phase, epoch, group: plan, log, optimizer")
    at = 0
    for number, phase in enumerate(plan):
        per_epoch = phase["steps"] // 2
        settings = phase["settings"]
        for epoch in range(2):
            step = (epoch + 1) * per_epoch - 1  # the last of the epoch, which is the one logged
            factor = scale(lr_schedule, step=step, total_steps=phase["steps"], warmup_steps=per_epoch)
            row = logged[2 * number + epoch]
            in_use = used[at + step]
            groups = {name.removeprefix("lr/") for name, value in row.items() if name.startswith("lr/") and value}
            assert groups == set(in_use)
            assert {name.split("/")[0] for name in groups} == set(phase["train"])
            for name in sorted(groups):
                stage = name.split("/")[0]
                distance = 5 - list(phase["stages"]).index(stage)
                planned = phase["stages"][stage]["lr"] * factor
                print(
                    f"  {phase['name']:5} {epoch} {name:16} {planned:.6e} {float(row['lr/' + name]):.6e} {in_use[name]:.6e}"
                )
                assert phase["stages"][stage]["lr"] == settings["lr"] * 0.3**distance
                assert planned == float(row[f"lr/{name}"]) == in_use[name]
        at += phase["steps"]


def test_every_step_of_a_phase_uses_the_rate_of_its_own_number(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    real = torch.optim.SGD.step

    def spying(optimizer: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        result = real(optimizer, *args, **kwargs)
        used.append(optimizer.param_groups[-1]["lr"])
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", spying)
    train_tiny(
        words(
            "optimizer=sgd",
            "schedule=frozen",
            "schedule.phases.0.epochs=3",
            "schedule.lr=0.125",
            "schedule.max_steps=7",
        ),
        tmp_path / "run",
    )
    assert used == [0.125 * scale("cosine", step=step, total_steps=7) for step in range(7)]


def test_a_plateau_lowers_the_rate_of_all_groups_together(words: Words, tmp_path: Path) -> None:
    given = [
        "schedule=full",
        "schedule.lr_schedule=plateau",
        "schedule.phases.0.epochs=7",
        "monitor=val/loss",
        "backbone.name=resnet10t",
    ]
    # a rate so small that the validation loss stands still in its leading digits, and one that makes it worse
    run_dir = train_tiny(
        words(*given, "schedule.phases.0.lr=0.2", "schedule.layer_decay=0.5"), tmp_path / "run"
    ).run_dir
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    from finetune.training.epoch_history import EpochHistory

    progress = EpochHistory(monitor="val/loss")
    for row in rows:
        factor = progress.plateau_factor()
        assert float(row["lr/head/decay"]) == 0.2 * factor
        assert float(row["lr/stem/decay"]) == 0.2 * 0.7**5 * factor
        progress.history.append((float(row["val/loss"]), float(row["val/loss"])))
    assert {float(row["lr/head/decay"]) for row in rows} > {0.2}, (
        "the plateau was never reached; the test shows nothing"
    )
