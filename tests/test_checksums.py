"""A flipped bit in what a run reads back is an error, or changes nothing."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checksums import CHECKSUMS, verify, write_checked_text
from finetune.errors import UserError
from finetune.runners.resume import resume
from finetune.training.callbacks.checkpoints import read_checkpoint
from tests.conftest import TINY
from tests.runs import outcome, train_tiny


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    return bool(one == two)


def test_no_flipped_bit_of_a_checkpoint_gives_another_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    state = {"weights": torch.randn(40), "state": {"count": torch.arange(5), "history": [(0.5, 1)]}, "step": 3}
    with path.open("wb") as file:
        torch.save(state, file)
    whole = path.read_bytes()
    outcomes = {"refused": 0, "same": 0}
    # every byte of the file, headers and directory of the zip among them
    for bit in range(0, 8 * len(whole), 3):
        flip(path, bit)
        try:
            found = read_checkpoint(path)
        except UserError:
            outcomes["refused"] += 1
        else:
            assert same(found, state), f"bit {bit}"
            outcomes["same"] += 1
        path.write_bytes(whole)
    # in a file this small half of the bytes are padding and times
    assert outcomes["refused"] > outcomes["same"] > 0


def test_a_file_with_other_bytes_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_checked_text(path, "first")
    verify(path)
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        with pytest.raises(UserError, match=r"result\.json: damaged\. Its SHA-256 .* Delete it, then make it again"):
            verify(path)
        flip(path, bit)
    verify(path)


def test_a_kill_between_a_checksum_and_its_file_leaves_the_file_of_before_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_checked_text(path, "first")

    real = os.replace

    def killed_at_the_second(old: Path, new: Path) -> None:
        if Path(new).name != CHECKSUMS:
            raise KeyboardInterrupt
        real(old, new)

    monkeypatch.setattr(os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_checked_text(path, "second")
    monkeypatch.setattr(os, "replace", real)
    assert len(json.loads((tmp_path / CHECKSUMS).read_text())["result.json"]) == 2
    assert path.read_text() == "first"
    verify(path)
    write_checked_text(path, "third")
    verify(path)


@pytest.fixture(scope="module")
def finished(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    short = ("schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=1", "optimizer=sgd")
    words = ["data=folder", f"data.root={pets}", *TINY, *short]
    return train_tiny(words, tmp_path_factory.mktemp("finished") / "run").run_dir


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """A run as it is when it was killed in its last phase, whose last checkpoint is there."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("results.json", "final.safetensors", "phases/1-all/result.json"):
        (run / name).unlink()
    return run


# files that a resumed run reads -> what the message says to delete
READ = {
    "run.json": (),
    "plan.json": (),
    "phases/0-head/result.json": ("phases/0-head/result.json",),
    "phases/1-all/start.safetensors": ("phases/1-all/start.safetensors", "phases/0-head/result.json"),
    "phases/1-all/last.ckpt": ("phases/1-all/last.ckpt",),
    "phases/1-all/best.ckpt": ("phases/1-all/best.ckpt", "phases/1-all/last.ckpt"),
}


@pytest.mark.parametrize("name", READ)
def test_a_run_with_a_flipped_bit_is_refused_and_can_be_mended(name: str, interrupted: Path, finished: Path) -> None:
    path = interrupted / name
    draw = random.Random(name)
    # in the middle of the largest tensor, or anywhere in JSON
    flip(path, 8 * (path.stat().st_size // 2) + draw.randrange(8))
    with pytest.raises(UserError, match=rf"{path.name}.*: (damaged|cannot be read).*Restore it from a backup"):
        resume(interrupted)
    for victim in READ[name]:
        (interrupted / victim).unlink()
    if READ[name]:
        resume(interrupted)
        assert outcome(interrupted) == outcome(finished)


@pytest.mark.parametrize("name", [*READ, "checksums.json", "phases/1-all/checksums.json"])
def test_no_flipped_bit_of_a_file_that_a_resumed_run_reads_passes(name: str, interrupted: Path) -> None:
    path = interrupted / name
    draw = random.Random(name)
    checked = [path] if path.name != CHECKSUMS else [path.parent / other for other in json.loads(path.read_text())]
    passed = 0
    for _ in range(40):
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        try:
            for file in checked:
                if file.is_file():
                    verify(file)
            passed += 1
        except UserError:
            pass
        flip(path, bit)
    # a checkpoint has padding; a digest of an earlier version, or of a file that is gone, is compared with nothing
    assert passed == 0 or path.suffix == ".ckpt" or path.name == CHECKSUMS


def test_a_run_whose_checksums_are_gone_is_refused(interrupted: Path) -> None:
    (interrupted / "phases/1-all/checksums.json").unlink()
    with pytest.raises(UserError, match=r"start.safetensors: has no checksum"):
        resume(interrupted)
