"""Checkpoints: nothing foreign runs, nothing good is lost."""

import os
import pickle
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch

from finetune.errors import RunError, UserError
from finetune.training.callbacks.checkpoints import AtomicCheckpointIO, PhaseCheckpoints, read_checkpoint
from finetune.training.phase_module import PhaseModule


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_malicious_checkpoint_is_refused_and_runs_nothing(form: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = tmp_path / "last.ckpt"
    if form == "torch":
        torch.save({"state_dict": {}, "x": Payload(made)}, path)
    else:
        path.write_bytes(pickle.dumps({"x": Payload(made)}))
    with pytest.raises(UserError, match=r"last.ckpt: cannot be read as a checkpoint of tensors and plain values"):
        read_checkpoint(path)
    with pytest.raises(UserError):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not made.exists()


def test_the_environment_cannot_switch_the_safety_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"x": Payload(tmp_path / "made")}, tmp_path / "last.ckpt")
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "made").exists()


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process may grow beyond 200 kB: what a full disk does to a write, without a disk to fill."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_the_last_checkpoint_whole_and_says_so(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"x": torch.arange(10)}, tmp_path / "last.ckpt")
    with pytest.raises(RunError, match=r"last.ckpt: could not be written, the disk is full"):
        io.save_checkpoint({"x": torch.zeros(1_000_000)}, tmp_path / "last.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "last.ckpt")["x"], torch.arange(10))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_failed_write_of_another_kind_is_not_called_a_full_disk(tmp_path: Path) -> None:
    class Unwritable:
        def __reduce__(self) -> Any:
            raise TypeError("cannot be written")

    with pytest.raises(TypeError, match="cannot be written"):
        AtomicCheckpointIO().save_checkpoint({"x": Unwritable()}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_lightning_reads_and_writes_through_it(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        plugins=[AtomicCheckpointIO()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.parametrize(
    ("every", "accumulate", "written"),
    [(1, 1, [1, 2, 3, 4, 5, 6, 7]), (3, 1, [3, 6]), (1, 2, [2, 4, 6]), (2, 2, [4]), (3, 2, [6]), (None, 1, [])],
)
def test_steps_between_checkpoints_are_those_of_the_optimizer(
    tmp_path: Path, every: int | None, accumulate: int, written: list[int]
) -> None:
    callback = PhaseCheckpoints(folder=tmp_path, metrics_csv=Mock(), every_n_steps=every)
    batches: list[int] = []
    for batch in range(8):
        trainer: Any = SimpleNamespace(
            num_training_batches=8,
            accumulate_grad_batches=accumulate,
            val_check_batch=None,
            global_step=0,
            should_stop=False,
            save_checkpoint=lambda path, done=batch + 1: batches.append(done),
        )
        callback.on_train_batch_end(trainer, Mock(spec=PhaseModule, total_steps=99), None, None, batch)
    assert batches == written
