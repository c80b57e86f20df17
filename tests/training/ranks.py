"""Runs with several processes for tests: forked from this one, so that torch is imported once, and never waited for in vain."""

import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from finetune.data.datamodule import Batch
from finetune.errors import Interrupted

DDP = ("trainer.strategy=ddp", "trainer.accelerator=cpu")
TWO = ("trainer.devices=2", *DDP)
# that a run of two processes ends at all is what these tests hold; on a busy machine it may take its time
PATIENCE_S = 300.0


# "RANK:BATCHES", or "all:BATCHES": who dies without a word, and before its how-many-th batch; not in the configuration,
# because the resumed run shall live
DIE, FAIL = "FINETUNE_TEST_DIE", "FINETUNE_TEST_FAIL"
# "RANK:BATCHES:NUMBER": who is sent that signal, and before its how-many-th batch
SIGNAL = "FINETUNE_TEST_SIGNAL"


class RecordRows(pl.Callback):
    """Writes down which images each process trains on, and a digest of the views it is given.

    Args:
        folder: Gets one file a process.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._seen = Path(folder), 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """One line a batch: phase, epoch, batch, rows, a sum over the pixels of each view by their places."""
        now = {f"{trainer.global_rank}:{self._seen}", f"all:{self._seen}"}
        if os.environ.get(SIGNAL, "").rpartition(":")[0] in now:
            os.kill(os.getpid(), int(os.environ[SIGNAL].rpartition(":")[2]))
        self._seen += 1
        if os.environ.get(DIE) in now:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get(FAIL) in now:
            raise RuntimeError("the disk under this process is gone")
        places = torch.arange(batch.images[0].numel()).view(batch.images[0].shape) % 251 + 1
        views = (batch.images.long() * places).flatten(1).sum(1).tolist()
        line = (pl_module.phase.name, batch.position.epoch, batch.position.step, batch.rows.tolist(), views)
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rows.{trainer.global_rank}").open("a") as file:
            file.write(f"{line!r}\n")


class SignalAfterFit(pl.Callback):
    """Sends a process SIGTERM when its first fit is over.

    Args:
        rank: The process's number.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No step is left that could be kept."""
        if trainer.global_rank == self._rank:
            os.kill(os.getpid(), signal.SIGTERM)


def recorded(folder: Path) -> list[str]:
    """Overrides that put the recorder into a run."""
    return ["callbacks.rows._target_=tests.training.ranks.RecordRows", f"callbacks.rows.folder='{folder}'"]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def forked_ranks(
    job: Callable[[], object],
    output: Path,
    *,
    world: int = 2,
    patience_s: float = PATIENCE_S,
    environment: Mapping[str, str] | None = None,
    agent_s: float = math.inf,
) -> list[int]:
    """Do a job in several processes that find each other as those of a cluster do.

    Args:
        job: Done by each of them.
        output: Gets what each says, in files with its number behind the name.
        world: Number of processes.
        environment: Further variables.
        patience_s: After that many seconds all are killed, and the test fails.
        agent_s: Seconds after the failure of one at which the others are killed, as torchrun's agent and ``srun`` do;
            infinite lets them end by themselves.

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
            # pytest has put its own objects in the place of the streams
            sys.stdout = sys.stderr = output.with_name(f"{output.name}.{rank}").open("w", buffering=1)
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)
            os.environ.update({**cluster(port, world), **(environment or {}), "LOCAL_RANK": str(rank)})
            torch.set_num_threads(1)
            job()
            status = 0
        except Interrupted as stopped:
            print(stopped)
            status = stopped.status
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return awaited(children, patience_s=patience_s, agent_s=agent_s)


def cluster(port: int, world: int) -> dict[str, str]:
    """Variables by which the processes of a run find each other."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(world)}


def awaited(children: Sequence[int], *, patience_s: float = PATIENCE_S, agent_s: float = math.inf) -> list[int]:
    """Exit statuses of child processes; all are killed once patience runs out, and ``agent_s`` after one has failed."""
    statuses: dict[int, int] = {}
    deadline, agent_deadline = time.monotonic() + patience_s, math.inf
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    statuses[child] = os.waitstatus_to_exitcode(status)
                    if statuses[child]:
                        agent_deadline = min(agent_deadline, time.monotonic() + agent_s)
        if time.monotonic() > agent_deadline:
            for child in set(children) - set(statuses):
                os.kill(child, signal.SIGKILL)
            agent_deadline = math.inf
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
