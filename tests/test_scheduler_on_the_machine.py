"""A machine with a scheduler's commands installed runs and tests as any other."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest

from finetune.cli import main


@pytest.fixture
def srun_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program ``srun`` first on PATH; nothing may start it."""
    program = tmp_path / "bin/srun"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 97\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


@pytest.mark.usefixtures("srun_installed")
def test_a_trainer_of_a_test_is_built_without_a_warning(tmp_path: Path) -> None:
    pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)


@pytest.mark.usefixtures("srun_installed")
def test_a_run_ends_well_and_says_nothing_of_it(
    words: Callable[..., list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = ("schedule=frozen", "schedule.phases.0.epochs=1", f"run_dir={tmp_path / 'run'}")
    assert main(words(*run)) == 0
    said = capfd.readouterr()
    assert "srun" not in said.out + said.err
