"""Interrupted equals uninterrupted, to the bit."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.checksums import write_checked_json
from finetune.config import compose
from finetune.errors import UserError
from finetune.run_folder import remove_half_created
from finetune.runners.resume import resume
from finetune.runners.train import train
from tests.runs import outcome, train_tiny
from tests.training.killing import run_killed, run_whole

Words = Callable[..., list[str]]

MIXED = (
    "schedule=head_then_all",
    "schedule.phases.0.epochs=2",
    "schedule.phases.1.epochs=2",
    "schedule.phases.1.batch_norm=train",
    "schedule.phases.1.mixup=0.4",
    "schedule.phases.1.ema_decay=0.9",
    "schedule.phases.1.lr_schedule=one_cycle",
    "data.augment=standard",
    "head.drop_rate=0.3",
    "checkpoint.every_n_steps=2",
)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_any_event_ends_as_the_uninterrupted_one(
    workers: int, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a cache of its own for each run: what it writes there is among its events
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    asked = words(*MIXED, f"data.num_workers={workers}")
    total = run_whole(asked, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    draw = random.Random(workers)
    events = (tmp_path / "whole.events").read_text().splitlines()
    writing = [at for at, name in enumerate(events) if "half written" in name and "last.ckpt" in name]
    # one kill while a checkpoint is half written, one anywhere, one more after the resume
    for number, kills in enumerate(
        [[draw.choice(writing)], [draw.randrange(total)], [draw.randrange(total), draw.randrange(total // 2)]]
    ):
        run_dir = tmp_path / f"killed{number}"
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / f"cache{number}"))
        assert run_killed(asked, run_dir, kills=kills) >= 1
        assert outcome(run_dir) == expected, f"killed at {[events[kills[0]]]}"
        assert not list(run_dir.rglob("*.part"))


@pytest.fixture(scope="module")
def finished(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import TINY

    words = ["data=folder", f"data.root={pets}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    return train_tiny(words, tmp_path_factory.mktemp("finished") / "run").run_dir


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A run as it is when it was killed before its results were written."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "results.json").unlink()
    return copy


def test_resuming_a_finished_run_says_so_and_changes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    resume(finished)
    assert "finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_one_line_starts_a_run_goes_on_with_it_and_returns_its_result(
    unfinished: Path, finished: Path, words: Words, caplog: pytest.LogCaptureFixture
) -> None:
    same = words("schedule=frozen", "schedule.phases.0.epochs=1", "resume=auto")
    with pytest.raises(UserError, match=r"holds a run with other settings.* schedule.phases\[0\].epochs: 1 -> 2"):
        train_tiny([*same, "epochs=2"], unfinished)
    changed = train_tiny([*same, "logger=tensorboard", "data.num_workers=2", "report=false"], unfinished)
    said = caplog.text
    assert "data.num_workers: 0 -> 2 (the result does not depend on it)" in said
    assert "logger: none -> tensorboard (metrics of what is left go there)" in said
    assert outcome(unfinished) == outcome(finished)
    # and of a run that has finished, which it trains no more
    again = train_tiny([*same, "logger=tensorboard", "report=false"], unfinished)
    assert (again.bundle, again.results.test.acc) == (changed.bundle, changed.results.test.acc)
    with pytest.raises(UserError, match="holds a run with other settings"):
        train_tiny([*same, "epochs=2"], unfinished)


def test_what_a_process_left_that_was_killed_before_the_record_makes_room_and_nothing_else_does(
    unfinished: Path, tmp_path: Path
) -> None:
    for name in ("phases", "model"):
        shutil.rmtree(unfinished / name)
    kept = ("config.yaml", "plan.json", "split.csv", "checksums.json", "run.json")
    for file in unfinished.iterdir():
        if file.name not in kept:
            file.unlink()
    (unfinished / ".run.json.host-17.part").write_text("{")
    remove_half_created(unfinished, wait_s=0)
    assert {file.name for file in unfinished.iterdir()} == {*kept, ".run.json.host-17.part"}
    (unfinished / "run.json").rename(unfinished / "mine.json")
    remove_half_created(unfinished, wait_s=0)
    assert len(list(unfinished.iterdir())) == 6
    (unfinished / "mine.json").unlink()
    remove_half_created(unfinished, wait_s=0)
    assert not list(unfinished.iterdir())
    remove_half_created(tmp_path / "none", wait_s=0)


def test_going_on_needs_a_folder_by_which_the_run_is_found_again(words: Words) -> None:
    with pytest.raises(UserError, match="resume=auto: needs the folder of the run"):
        train(compose(words("resume=auto")))


def test_a_moved_run_can_be_resumed(unfinished: Path, finished: Path) -> None:
    resume(unfinished)
    assert outcome(unfinished) == outcome(finished)


def test_a_logger_in_an_edited_configuration_is_refused_though_one_may_be_typed(unfinished: Path) -> None:
    path = unfinished / "config.yaml"
    text = path.read_text()
    assert "logger: {}" in text
    node = "logger: {x: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: elsewhere}}"
    path.write_text(text.replace("logger: {}", node))
    with pytest.raises(UserError, match=r"config.yaml has been edited.*logger"):
        resume(unfinished)
    assert not Path("elsewhere").exists()


def test_an_edited_configuration_is_refused_with_the_key_named(unfinished: Path) -> None:
    path = unfinished / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match=r"config.yaml has been edited.* seed: 0 -> 1"):
        resume(unfinished)


def test_changed_data_is_refused_with_the_counts_named(pets: Path, tmp_path: Path) -> None:
    from tests.conftest import TINY

    copy = tmp_path / "pets"
    shutil.copytree(pets, copy)
    words = ["data=folder", f"data.root={copy}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    run_dir = train_tiny(words, tmp_path / "run").run_dir
    (run_dir / "results.json").unlink()
    next((copy / "2 dog").iterdir()).unlink()
    with pytest.raises(UserError, match=r"the data has changed.*counts\.\w+\[1\]: \d+ -> \d+"):
        resume(run_dir)


def test_another_version_is_refused_with_both_versions_named(unfinished: Path) -> None:
    record = json.loads((unfinished / "run.json").read_text())
    record["versions"]["torch"] = "1.0.0"
    write_checked_json(unfinished / "run.json", record)
    with pytest.raises(UserError, match=r"other versions.*torch: '1.0.0' -> "):
        resume(unfinished)
    resume(unfinished, anyway=True)
    assert (unfinished / "results.json").is_file()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "run.json").unlink(), "stopped before its first phase, so there is nothing to resume"),
        (lambda run: (run / "run.json").write_text("{"), "damaged"),
        (lambda run: (run / "run.json").write_text('{"format": 99}'), "format 99"),
        (lambda run: shutil.rmtree(run), "no such folder"),
        (lambda run: [p.unlink() for p in run.iterdir() if p.is_file()], "not a run folder"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_refused(
    damage: Callable[[Path], None], message: str, unfinished: Path
) -> None:
    damage(unfinished)
    with pytest.raises(UserError, match=message):
        resume(unfinished)


def test_a_full_disk_ends_the_run_with_one_message_and_can_be_resumed(words: Words, tmp_path: Path) -> None:
    import resource
    import signal

    from tests.training.killing import Events, forked

    # the head alone fits in the files that are allowed, the whole network does not: the second phase's checkpoint fails
    asked = words("schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=2", "optimizer=sgd")
    run_whole(asked, tmp_path / "whole")
    start = (tmp_path / "whole/phases/0-head/start.safetensors").stat().st_size

    def on_a_small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (start + 100_000, resource.RLIM_INFINITY))
        train_tiny(asked, tmp_path / "run")

    assert forked(on_a_small_disk, Events(), tmp_path / "out") == 1
    said = (tmp_path / "out").read_text()
    assert "finetune.errors.FileError" in said
    assert "could not be written, the disk is full" in said
    assert (tmp_path / "run/phases/1-all/start.safetensors").is_file()
    assert not list((tmp_path / "run").rglob("*.part"))
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_malicious_checkpoint_in_a_run_is_refused_by_resume_and_runs_nothing(
    name: str, unfinished: Path, tmp_path: Path
) -> None:
    import os

    import torch

    class Payload:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "made"),)

    folder = unfinished / "phases/0-head"
    # the phase is to be taken up again: from its checkpoint, or from the best one that it hands on
    (folder / "result.json").unlink()
    torch.save({"state_dict": {}, "finetune": {}, "x": Payload()}, folder / name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read as a checkpoint of tensors and plain values"):
        resume(unfinished)
    assert not (tmp_path / "made").exists()


def _unfinish(run_dir: Path, phase: str) -> None:
    """Leave a finished run as if it was killed at the end of its last phase, before its result was written."""
    for name in ("results.json", "final.safetensors", f"phases/{phase}/result.json"):
        (run_dir / name).unlink()


def test_a_stop_by_a_callback_is_the_end_of_a_resumed_phase_too(words: Words, tmp_path: Path) -> None:
    # no epoch improves by 10, so the phase stops after its second
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, min_delta: 10, patience: 1}"
    run_dir = train_tiny(
        words("schedule=frozen", "schedule.phases.0.epochs=4", f"callbacks.stop={stop}"), tmp_path / "run"
    ).run_dir
    expected = outcome(run_dir)
    _unfinish(run_dir, "0-head")
    resume(run_dir)
    assert outcome(run_dir) == expected


def test_metrics_of_a_part_of_the_images_are_not_compared_after_a_resume_either(words: Words, tmp_path: Path) -> None:
    more = ["schedule=lp_ft", "schedule.phases.1.epochs=1", "schedule.phases.1.lr=30", "+trainer.limit_val_batches=1"]
    run_dir = train_tiny(words(*more), tmp_path / "run").run_dir
    expected = outcome(run_dir)
    _unfinish(run_dir, "1-all")
    resume(run_dir)
    assert outcome(run_dir) == expected


def test_a_run_whose_optimizer_keeps_factors_of_its_moments_is_resumed(words: Words, tmp_path: Path) -> None:
    factored = ["optimizer._target_=torch.optim.Adafactor", "~optimizer.betas"]
    asked = words("schedule=full", "schedule.phases.0.epochs=1", *factored)
    run_dir = train_tiny(asked, tmp_path / "run").run_dir
    expected = outcome(run_dir)
    _unfinish(run_dir, "0-all")
    resume(run_dir)
    assert outcome(run_dir) == expected
