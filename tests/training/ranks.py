"""Runs with several processes for tests: forked from this one, so that torch is imported once, and never waited for in vain."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch

DDP = ("trainer.strategy=ddp", "trainer.accelerator=cpu")
TWO = ("trainer.devices=2", *DDP)
# that a run of two processes ends at all is what these tests hold; on a busy machine it may take its time
PATIENCE_S = 120.0


class RecordRows(pl.Callback):
    """Writes down which images each process trains on, and a digest of the views it is given.

    Args:
        folder: Gets one file a process.
        die_at: ``RANK:BATCHES``: that process kills itself without a word before its so many-th batch.
        raise_at: Likewise, it raises an error.
    """

    def __init__(self, folder: str, die_at: str = "", raise_at: str = "") -> None:
        self._folder, self._seen = Path(folder), 0
        self._die_at, self._raise_at = die_at, raise_at

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:  # type: ignore[no-untyped-def]
        """One line a batch: phase, epoch, batch, rows, sum of the pixels of each view."""
        now = f"{trainer.global_rank}:{self._seen}"
        self._seen += 1
        if now == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if now == self._raise_at:
            raise RuntimeError("the disk under this process is gone")
        views = [
            int(image.long().mul(torch.arange(image.numel()).view(image.shape) % 251 + 1).sum())
            for image in batch.images
        ]
        line = (pl_module.phase.name, batch.position.epoch, batch.position.step, batch.rows.tolist(), views)
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rows.{trainer.global_rank}").open("a") as file:
            file.write(f"{line!r}\n")


def recorded(folder: Path, **more: str) -> list[str]:
    """Overrides that put the recorder into a run."""
    settings = {"folder": str(folder), **more}
    return [
        "callbacks.rows._target_=tests.training.ranks.RecordRows",
        *[f"callbacks.rows.{name}='{value}'" for name, value in settings.items()],
    ]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def forked_ranks(
    job: Callable[[], object], output: Path, *, world: int = 2, patience_s: float = PATIENCE_S
) -> list[int]:
    """Do a job in several processes that find each other as those of a cluster do.

    Args:
        job: Done by each of them.
        output: Gets what each says, in files with its number behind the name.
        world: Number of processes.
        patience_s: After that many seconds all are killed, and the test fails.

    Returns:
        Exit status of each, negative for a signal.
    """
    port = free_port()
    sys.stdout.flush()
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            with output.with_name(f"{output.name}.{rank}").open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0}
                os.environ.update({name: str(value) for name, value in {**environment, "WORLD_SIZE": world}.items()})
                torch.set_num_threads(1)
                job()
                status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return awaited(children, patience_s=patience_s)


def awaited(children: Sequence[int], *, patience_s: float = PATIENCE_S) -> list[int]:
    """Exit statuses of child processes; all are killed once patience runs out."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + patience_s
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for child in set(children) - set(statuses):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise TimeoutError(f"{len(children) - len(statuses)} of {len(children)} processes hung")
        time.sleep(0.02)
    return [statuses[child] for child in children]


def said(output: Path, *, world: int = 2) -> list[str]:
    """What each process wrote."""
    return [output.with_name(f"{output.name}.{rank}").read_text() for rank in range(world)]
