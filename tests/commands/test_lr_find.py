"""``finetune lr-find`` from the command line."""

import csv
import json
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.commands.lr_find import choose_phase
from finetune.config import compose
from finetune.errors import UserError
from finetune.phases import ResolvedPhase

Words = Callable[..., list[str]]


def test_it_writes_the_table_the_numbers_and_the_picture_and_says_the_command(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a b"
    asked = words("schedule=gradual", "schedule.phases.1.lr=0.5", f"run_dir={str(folder)!r}")
    # training is configured for two devices; the search needs one, and must not start a second process
    asked += ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    assert main(["lr-find", "--steps=15", *asked, "--lowest", "1e-5", "--highest", "0.1"]) == 0
    assert {path.name for path in folder.iterdir()} == {"lr_find.csv", "lr_find.json", "lr_find.svg"}
    with (folder / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = json.loads((folder / "lr_find.json").read_text())
    assert list(rows[0]) == ["step", "loss", "smoothed", "lr/layer4", "lr/head"]
    assert len(rows) == told["steps"] == 15
    # the head before it is solved, without a rate
    assert told["phase"] == "top"
    assert {"".join(node.itertext()).strip() for node in ET.parse(folder / "lr_find.svg").iter()} >= {
        "learning rate of head; the other stages keep their ratio to it"
    }
    assert set(told["suggestions"]) == {"valley", "steepest"}
    command = told["suggestions"]["valley"]["command"]
    output = capsys.readouterr().out
    assert f"use: {command}" in output
    assert [line.split()[0] for line in output.splitlines()].count("steepest") == 1
    program, *overrides = shlex.split(command)
    assert program == "finetune"
    config = compose(overrides)
    assert config.schedule.phases[1].lr == pytest.approx(told["suggestions"]["valley"]["lr"], rel=5e-3)
    assert config.run_dir is None
    assert config.trainer["devices"] == 2


def test_a_rough_curve_is_told_with_what_would_draw_a_better_one(
    words: Words, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = words("schedule=full")
    few = ["lr-find", "--steps=15", *asked, "--lowest", "1e-6", "--highest", "1e-3", f"run_dir={tmp_path / 'few'}"]
    assert main(few) == 0
    assert "15 steps give a rough curve, and its suggestion may be far off. --steps 100, the default" in caplog.text
    caplog.clear()
    # more steps would not help where the loss diverges at once
    steep = ["lr-find", "--steps=60", *asked, "--lowest", "0.01", "--highest", "1e3", f"run_dir={tmp_path / 'steep'}"]
    assert main(steep) == 0
    assert "Start at a lower rate: --lowest 0.0001." in caplog.text


def test_a_phase_is_given_by_number_or_name_and_else_the_first_with_a_rate() -> None:
    common = {"train": ("head",), "stages": ("stem", "head"), "lr": 0.1}
    phases = [ResolvedPhase(name=name, solver=solver, **common) for name, solver in (("a", "lbfgs"), ("b", "gradient"))]
    assert [choose_phase(phases, asked) for asked in (None, "a", "0", "b", "1")] == [1, 0, 0, 1, 1]
    assert choose_phase(phases[:1], None) == 0


@pytest.mark.parametrize(("cache", "swept"), [("auto", "top"), ("off", "head")])
def test_a_head_that_would_be_solved_but_cannot_be_has_a_rate_to_find(
    cache: str, swept: str, words: Words, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def name_the_phase(*, phase: ResolvedPhase, **others: object) -> None:
        raise UserError(f"sweeps {phase.name}")

    monkeypatch.setattr("finetune.training.lr_finder.find_rate", name_the_phase)
    assert main(["lr-find", *words("schedule=gradual", f"schedule.cache={cache}")]) == 2
    assert capsys.readouterr().err.strip() == f"sweeps {swept}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phase", "tpo"], "--phase tpo: no such phase. Phases: 0 (head), 1 (top), 2 (all). Did you mean 'top'?"),
        (["--phase", "3"], "--phase 3: no such phase."),
        (["--steps", "3"], "--steps 3: must be at least 10"),
        (["--steps", "many"], "--steps many: must be a number."),
        (["--lowest", "1", "--highest", "0.1"], "--lowest 1 --highest 0.1: must be positive"),
        (["--steps"], "--steps: needs a value."),
        (["--step", "10"], "--step: no such option."),
    ],
)
def test_mistakes_are_told_in_one_line(
    options: list[str], message: str, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr-find", *words("schedule=gradual", f"run_dir={tmp_path / 'run'}"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    # beside the line to type, where there is one
    assert len([line for line in error.splitlines() if not line.startswith("Use: ")]) == 1
    assert not (tmp_path / "run").exists()


def test_the_help_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lr-find", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: finetune lr-find key=value ...")
    assert all(option in text for option in ("--phase N", "--steps N", "--lowest RATE", "--highest RATE"))
