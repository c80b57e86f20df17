"""Several processes are one run: the same images, the same weights, one voice, and no waiting for the dead."""

import csv
import json
import os
import re
import shutil
import signal
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune.errors import UserError
from finetune.runners.resume import resume
from tests.runs import outcome, train_tiny
from tests.training.ranks import DIE, FAIL, TWO, forked_ranks, recorded, said

Words = Callable[..., list[str]]

# 48 images in 3 classes: 30 to train on, in batches of 8 and 7; 9 to validate and 9 to test, which 2 does not divide
JOB = (
    "data.val_fraction=0.2",
    "data.test_fraction=0.2",
    "schedule=head_then_all",
    "schedule.phases.0.epochs=1",
    "schedule.phases.1.epochs=2",
    "schedule.restore=last",
    "data.augment=standard",
    "data.eval_batch_size=2",
)


def rows_seen(folder: Path, world: int) -> list[dict[tuple[str, int, int], list[tuple[int, int]]]]:
    """Of each process: images and their views by phase, epoch and batch."""
    seen = []
    for rank in range(world):
        lines = [literal_eval(line) for line in (folder / f"rows.{rank}").read_text().splitlines()]
        seen.append(
            {(phase, epoch, step): list(zip(rows, views, strict=True)) for phase, epoch, step, rows, views in lines}
        )
    return seen


@pytest.fixture(scope="module")
def one(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("one")
    words = ["data=folder", f"data.root={pets}", *TINY, *JOB, *recorded(folder)]
    return train_tiny(words, folder / "run").run_dir


@pytest.fixture(scope="module")
def two(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in two."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("two")
    words = ["data=folder", f"data.root={pets}", *TINY, *JOB, *TWO, *recorded(folder)]

    def job() -> None:
        # every file of a run is written beside its place and renamed: who does it, is noted (the cache of what is known
        # of the images lies elsewhere, and is anybody's)
        rename = os.replace

        def noted(source: Path, target: Path) -> None:
            if Path(target).is_relative_to(folder):
                with (folder / f"writes.{os.environ['LOCAL_RANK']}").open("a") as file:
                    file.write(f"{Path(target).name}\n")
            rename(source, target)

        os.replace = noted  # type: ignore[assignment]
        train_tiny(words, folder / "run")

    assert forked_ranks(job, folder / "out") == [0, 0], said(folder / "out")
    return folder / "run"


def test_two_processes_share_the_batches_of_one_in_the_same_order_with_the_same_views(one: Path, two: Path) -> None:
    (whole,) = rows_seen(one.parent, 1)
    first, second = rows_seen(two.parent, 2)
    assert list(first) == list(second) == list(whole)
    for at, batch in whole.items():
        shared = [None] * len(batch)
        shared[0::2], shared[1::2] = first[at], second[at]
        assert shared == batch
    # and the last batches are uneven, so that equal weights for the two shares would be wrong
    assert {len(first[at]) - len(second[at]) for at in whole} == {0, 1}


def test_two_processes_end_at_the_weights_of_one(one: Path, two: Path) -> None:
    ours, theirs = load_file(one / "final.safetensors"), load_file(two / "final.safetensors")
    start = load_file(one / "phases/0-head/start.safetensors")
    assert set(ours) == set(theirs)
    moved = max(float((ours[name] - start[name]).abs().max()) for name in ours)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    print(f"largest difference {apart:.2g}, largest movement {moved:.2g}")
    assert moved > 1e-3
    assert apart < 1e-6


def test_metrics_count_each_image_once_though_two_does_not_divide_their_number(one: Path, two: Path) -> None:
    alone, together = (json.loads((run / "results.json").read_text()) for run in (one, two))
    for split in ("val", "test"):
        assert sum(map(sum, together[split]["confusion"])) == sum(together["data"]["counts"][split]) == 9
        assert together[split]["confusion"] == alone[split]["confusion"]
        for name in ("acc", "f1_macro", "recall", "ece", "loss"):
            assert together[split][name] == pytest.approx(alone[split][name], abs=1e-5)
    listed = [csv.DictReader((run / "predictions.csv").read_text().splitlines()) for run in (one, two)]
    paths, expected = ([row["path"] for row in rows] for rows in listed)
    assert paths == expected
    assert len(set(paths)) == len(paths) == 9


def test_the_log_of_an_epoch_is_that_of_one_process(one: Path, two: Path) -> None:
    alone, together = (list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (one, two))
    assert len(alone) == len(together) == 3
    for row, other in zip(alone, together, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if name == "phase":
                assert other[name] == value
            else:
                assert float(other[name] or "nan") == pytest.approx(float(value or "nan"), abs=1e-5, nan_ok=True)


def test_the_first_process_alone_writes_and_speaks(one: Path, two: Path) -> None:
    files = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (one, two)]
    assert files[0] == files[1]
    writers = {path.name: path.read_text().split() for path in two.parent.glob("writes.*")}
    assert list(writers) == ["writes.0"]
    assert writers["writes.0"].count("results.json") == 1
    first, second = said(two.parent / "out")
    assert second == ""
    lines = [line for line in first.splitlines() if line]
    assert len(lines) == len(set(lines))
    assert len([line for line in lines if re.match(r"phase \d of 2: ", line)]) == 2


def test_all_devices_of_a_machine_that_accumulate_in_bf16_end_at_the_weights_of_one(
    words: Words, tmp_path: Path
) -> None:
    phase = (
        "schedule=full",
        "epochs=1",
        "schedule.phases.0.accumulate=2",
        "schedule.restore=last",
        "optimizer=sgd",
        "lr=0.1",
    )
    asked = [word for word in words(*phase) if "precision" not in word]
    asked += ["trainer.precision=bf16-mixed", "trainer.accelerator=cpu"]
    plain = train_tiny(asked, tmp_path / "one")

    def job() -> None:
        with pytest.MonkeyPatch.context() as patched:
            # a processor counts as one device; this machine has two
            patched.setattr("lightning.pytorch.accelerators.CPUAccelerator.auto_device_count", staticmethod(lambda: 2))
            train_tiny([*asked, "trainer.devices=auto", "trainer.strategy=ddp"], tmp_path / "two")

    assert forked_ranks(job, tmp_path / "out") == [0, 0], said(tmp_path / "out")
    results = json.loads((tmp_path / "two/results.json").read_text())
    assert results["precision"] == "bf16-mixed"
    # five batches, two a step
    assert [phase["steps"] for phase in results["phases"]] == [phase.steps for phase in plain.results.phases] == [3]
    start, one, two = (
        load_file(tmp_path / file)
        for file in ("one/phases/0-all/start.safetensors", "one/final.safetensors", "two/final.safetensors")
    )
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    print(f"largest difference {apart:.2g}, largest movement {moved:.2g}")
    assert moved > 1e-4
    assert apart < 0.05 * moved


MIXED = (
    "schedule=head_then_all",
    "schedule.phases.0.epochs=1",
    "schedule.phases.1.epochs=2",
    "schedule.phases.1.batch_norm=train",
    "schedule.phases.1.mixup=0.4",
    "schedule.phases.1.ema_decay=0.9",
    "schedule.phases.1.carry_optimizer=true",
    "data.augment=standard",
    "data.eval_batch_size=2",
    "head.drop_rate=0.3",
    "checkpoint.every_n_steps=2",
)


def test_two_processes_killed_and_resumed_end_at_the_bits_of_the_uninterrupted_two(
    words: Words, tmp_path: Path
) -> None:
    # one line starts the run and goes on with it, in processes that were not started by one another
    asked = words(*MIXED, *TWO, *recorded(tmp_path / "seen"), "resume=auto")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert forked_ranks(lambda: train_tiny(asked, whole), tmp_path / "out") == [0, 0], said(tmp_path / "out")
    # batches 0 to 4 are the first phase, 5 to 14 the second: inside its second epoch, after a checkpoint inside it
    statuses = forked_ranks(lambda: train_tiny(asked, killed), tmp_path / "out", environment={DIE: "all:13"})
    assert statuses == [-signal.SIGKILL] * 2
    assert not (killed / "results.json").exists()
    assert forked_ranks(lambda: train_tiny(asked, killed), tmp_path / "out") == [0, 0], said(tmp_path / "out")
    assert outcome(killed) == outcome(whole)
    # running statistics differ between processes while they train, yet both validate those of the first, which are shipped
    # (DDP hands them over in the first forward pass of a validation, of which each process has at least one)
    results = json.loads((whole / "results.json").read_text())
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    best = rows[1 + results["phases"][1]["best_epoch"]]
    assert float(best["val/loss"]) == pytest.approx(results["val"]["loss"], rel=1e-6)


def test_a_run_killed_on_two_devices_ends_on_one_at_the_weights_of_one(one: Path, pets: Path, tmp_path: Path) -> None:
    from tests.conftest import TINY

    words = ["data=folder", f"data.root={pets}", *TINY, *JOB, *recorded(tmp_path), "checkpoint.every_n_steps=1"]
    run = tmp_path / "run"
    statuses = forked_ranks(lambda: train_tiny([*words, *TWO], run), tmp_path / "out", environment={DIE: "all:9"})
    assert statuses == [-signal.SIGKILL] * 2
    assert not (run / "results.json").exists()
    assert resume(run, trust=True, overrides=["trainer.devices=1", "trainer.strategy=auto"]) is not None
    expected, weights = (load_file(folder / "final.safetensors") for folder in (one, run))
    assert max(float((expected[name] - weights[name]).abs().max()) for name in expected) < 1e-6
    alone, moved = (json.loads((folder / "results.json").read_text()) for folder in (one, run))
    assert moved["test"]["confusion"] == alone["test"]["confusion"]


def test_a_run_killed_before_its_test_counts_each_image_once_when_it_is_resumed(two: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(two, copy)
    for name in ("results.json", "predictions.csv"):
        (copy / name).unlink()
    shutil.rmtree(copy / "model")
    assert forked_ranks(lambda: resume(copy, trust=True), tmp_path / "out") == [0, 0], said(tmp_path / "out")
    assert outcome(copy) == outcome(two)


@pytest.mark.parametrize("how", [DIE, FAIL])
@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_dies_ends_the_run_with_a_message(how: str, who: int, words: Words, tmp_path: Path) -> None:
    asked = words(*JOB, *TWO, *recorded(tmp_path))
    statuses = forked_ranks(
        lambda: train_tiny(asked, tmp_path / "run"), tmp_path / "out", environment={how: f"{who}:6"}
    )
    assert statuses[who] == (-signal.SIGKILL if how == DIE else 1)
    assert statuses[1 - who] == 1
    survivor = said(tmp_path / "out")[1 - who]
    assert "RunError: The connection to another process of the run was lost" in survivor
    assert f"finetune resume {tmp_path / 'run'}" in survivor
    if how == FAIL:
        assert "the disk under this process is gone" in said(tmp_path / "out")[who]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.batch_size=1"], "smallest batch has 1 image for 2 processes"),
        (["trainer.devices=4", "data.val_fraction=0.01"], "4 processes share the val split, which has 3 images"),
    ],
)
def test_what_cannot_work_with_two_processes_is_refused_before_the_second_is_started(
    more: list[str], message: str, words: Words, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"(?i){message}"):
        train_tiny(words(*JOB, *TWO, *more), tmp_path / "run")


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"NODE_RANK": "1"}])
def test_processes_that_start_apart_must_be_told_the_folder(
    variables: dict[str, str], words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.build.run_dir import choose_run_dir
    from finetune.config import compose

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="run_dir: must be given"):
        choose_run_dir(compose(words()))
