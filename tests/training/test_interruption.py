"""A signal stops a run at its exact step: what goes on from there does nothing twice and ends with the same bits."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.file_lock import LOCK
from tests.conftest import TINY
from tests.runs import outcome
from tests.training.killing import Strike, run_killed, run_whole, steps_of

Words = Callable[..., list[str]]

SHORT = (
    "schedule=head_then_all",
    "schedule.phases.0.epochs=1",
    "schedule.phases.1.epochs=2",
    "schedule.phases.1.ema_decay=0.9",
    "schedule.phases.1.accumulate=2",
    "data.augment=standard",
    "head.drop_rate=0.3",
)


@pytest.fixture(scope="module")
def whole(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Overrides of a run, and where it was run without an interruption."""
    words = ["data=folder", f"data.root={pets}", *TINY, *SHORT]
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_whole(words, run_dir)
    return words, run_dir


@pytest.mark.parametrize(
    ("event", "before", "number", "where"),
    [
        ("write 0-head/start.safetensors: half written", 0, signal.SIGTERM, "in phase 1 (head)"),
        ("write", 0, signal.SIGUSR1, None),
        ("training_step", 0, signal.SIGINT, "at step 1 of 5 in phase 1 (head)"),
        ("optimizer_step", 3, signal.SIGTERM, "at step 4 of 5 in phase 1 (head)"),
        # accumulation: the first of two batches of the second phase
        ("training_step", 5, signal.SIGUSR1, "at step 1 of 6 in phase 2 (all)"),
        # the last step of an epoch, and the last of a phase
        ("training_step", 9, signal.SIGTERM, "at step 3 of 6 in phase 2 (all), before its validation"),
        ("training_step", 14, signal.SIGINT, "at step 6 of 6 in phase 2 (all), before its validation"),
        ("validation_step", 1, signal.SIGTERM, "at step 3 of 6 in phase 2 (all), before its validation"),
        ("write 1-all/best.ckpt: half written", 0, signal.SIGHUP, "at step 3 of 6 in phase 2 (all)"),
        ("write 1-all/last.ckpt: half written", 1, signal.SIGTERM, "at step 6 of 6 in phase 2 (all)"),
        ("test_step", 0, signal.SIGINT, "before the test finished"),
        ("write model/model.safetensors: half written", 0, signal.SIGTERM, "before its results were written"),
    ],
)
def test_a_signal_stops_a_run_where_it_is_and_nothing_is_done_twice(
    event: str,
    before: int,
    number: int,
    where: str | None,
    whole: tuple[list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a cache of its own: filling it is among the moments
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    words, uninterrupted = whole
    run_dir = tmp_path / "run"
    assert run_killed(words, run_dir, kills=[Strike((event, before), number)]) == 1
    assert outcome(run_dir) == outcome(uninterrupted)
    assert steps_of(run_dir) == steps_of(uninterrupted)
    # the lock stays, so that no two processes hold two of the same name
    assert {path.name for path in run_dir.rglob(".*")} <= {LOCK}
    said = run_dir.with_suffix(".out").read_text()
    assert "Traceback" not in said
    if where is not None:
        assert f"\nstopped {where}; continue with: finetune resume {run_dir}\n" in said


def test_a_signal_to_the_loader_processes_too_stops_the_run_in_the_same_way(
    whole: tuple[list[str], Path], tmp_path: Path
) -> None:
    words, uninterrupted = whole
    words = [*words, "data.num_workers=2"]
    run_dir = tmp_path / "run"
    # a process group of its own, to which the signal goes
    assert run_killed(words, run_dir, kills=[Strike(("training_step", 7), signal.SIGTERM, group=True)]) == 1
    assert outcome(run_dir) == outcome(uninterrupted)
    assert steps_of(run_dir) == steps_of(uninterrupted)
    said = run_dir.with_suffix(".out").read_text()
    assert "stopped at step 2 of 6 in phase 2 (all)" in said
    assert "Traceback" not in said


def test_a_second_ctrl_c_ends_the_run_at_once_with_its_last_checkpoint_whole(
    whole: tuple[list[str], Path], tmp_path: Path
) -> None:
    words, uninterrupted = whole
    run_dir = tmp_path / "run"
    assert run_killed(words, run_dir, kills=[Strike(("training_step", 12), signal.SIGINT, times=2)]) == 1
    assert "stopped" not in run_dir.with_suffix(".out").read_text()
    assert outcome(run_dir) == outcome(uninterrupted)
    # the second epoch of the second phase again, from the checkpoint of the first
    again = {name: steps_of(run_dir)[name] - count for name, count in steps_of(uninterrupted).items()}
    assert again == {"training_step": 3, "optimizer_step": 1, "_step": 0}


def test_under_slurm_the_signal_before_the_end_of_the_time_leaves_no_checkpoint_of_lightnings(
    whole: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NTASKS": 1, "JOB_ID": 1, "JOB_NAME": "train", "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    words, uninterrupted = whole
    run_dir = tmp_path / "run"
    assert run_killed(words, run_dir, kills=[Strike(("training_step", 2), signal.SIGUSR1)]) == 1
    assert "stopped at step 3 of 5 in phase 1 (head)" in run_dir.with_suffix(".out").read_text()
    assert outcome(run_dir) == outcome(uninterrupted)
    assert steps_of(run_dir) == steps_of(uninterrupted)
    assert not list(run_dir.rglob("hpc_ckpt*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_heads_tried_at_several_rates_after_another_phase_go_on_from_their_step(
    number: int, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = ["schedule.phases.1.train=[head]", "schedule.phases.1.lr_trials=[1e-3,1e-2]", "schedule.phases.1.epochs=2"]
    asked = words("schedule=head_then_all", "schedule.phases.0.epochs=1", *trials, "head.drop_rate=0.3")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    run_whole(asked, tmp_path / "whole")
    # two heads and five batches an epoch: the second head at the second batch of the second epoch
    assert run_killed(asked, tmp_path / "run", kills=[Strike(("_step", 13), number)]) == 1
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert not list((tmp_path / "run").rglob("trials.ckpt*"))
    if number == signal.SIGTERM:
        assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")
        assert "stopped at step 7 of 10 in phase 2 (all)" in (tmp_path / "run.out").read_text()


def test_a_signal_after_the_last_step_of_heads_tried_at_several_rates_costs_no_step(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = ["schedule.phases.0.lr_trials=[1e-3,1e-2]", "schedule.phases.0.epochs=2"]
    asked = words("schedule=frozen", *trials)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    run_whole(asked, tmp_path / "whole")
    strike = Strike(("write run/final.safetensors: half written", 0), signal.SIGTERM)
    assert run_killed(asked, tmp_path / "run", kills=[strike]) == 1
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")
    assert not list((tmp_path / "run").rglob("trials.ckpt*"))
