"""Watch the other processes of a run: when one of them dies, end the run with a message instead of hanging.

Processes that this one has not started, on other machines for instance, are known by their :mod:`~finetune.training.heartbeats`.

Lightning starts one process for each further device and checks on them every five seconds; when one has failed, it kills
all of them, including this one, without a message. It does nothing in the other direction: if the first process is killed
before the others have connected to it, they wait for half an hour.

Why not torchrun's agent (``torch.distributed.launcher``)? Tried with torch 2.15 and gloo, two ranks on one machine:

- A killed rank is reported after 0.3 s, as here, and the other one is ended.
- After ``kill -9`` of the agent both ranks train on without a parent until they are killed by hand. Here the others notice
  within 0.2 s that the process that started them is gone, and end.
- SIGUSR1, which SLURM sends before a time limit, kills the agent and leaves the ranks, unless ``signals_to_handle`` lists it.
- The agent is one more process, and the command's own process would neither train nor have the results.

When torchrun itself starts a run, its agent watches the processes of its machine.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from finetune.distributed import STARTED_BY, process_name
from finetune.errors import RunError, UserError
from finetune.training.heartbeats import Heartbeats
from finetune.training.interruption import SIGNALS, Interruption

# parts of torch's messages about a lost connection (gloo, NCCL, the store of the rendezvous)
_CONNECTION_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "gloo", "TCPStore")
_started: list[subprocess.Popen[bytes]] = []


class RankMonitor:
    """Watches the processes that this one started, or the process that started this one.

    Args:
        resume_hint: Advice on how to continue, appended to the message.
        interruption: Signals that stop the run, here and in the other processes.
        patience_s: Seconds that this process has to end by itself, with its own message, after another one has died.
        heartbeats: Heartbeats between this process and those of other machines; None where there are none.
    """

    def __init__(
        self,
        *,
        resume_hint: str,
        interruption: Interruption,
        patience_s: float = 5.0,
        heartbeats: Heartbeats | None = None,
    ) -> None:
        self._heartbeats = heartbeats
        self._hint, self._patience_s, self._interruption = resume_hint, patience_s, interruption
        self._launchers: list[Any] = []
        self._over = threading.Event()
        self._started_by = os.environ.get(STARTED_BY)
        self._parent = os.getppid() if self._started_by == str(os.getppid()) else None

    def __enter__(self) -> Self:
        os.environ[STARTED_BY] = str(os.getpid())
        if self._heartbeats is not None:
            self._heartbeats.start()
        threading.Thread(target=self._watch, name="rank-monitor", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._heartbeats is not None:
            self._heartbeats.stop(well=error is None)
        for process in self._processes():
            if error is not None:
                # otherwise it would wait for this process, and print a message about it
                process.kill()
        if self._started_by is None:
            os.environ.pop(STARTED_BY, None)
        else:
            os.environ[STARTED_BY] = self._started_by

    def watch(self, launcher: Any) -> None:
        """Watch the processes that a Trainer's launcher is about to start."""
        if hasattr(launcher, "procs"):
            self._launchers.append(launcher)

    def cause_of(self, error: Exception) -> BaseException:
        """Return the error, or the error behind it if another process has died."""
        if isinstance(error, (UserError, RunError)):
            return error
        # a connection breaks a moment before the system reports that the process at its other end has ended
        deadline = time.monotonic() + 2.0
        while (message := self._lost()) is None and self._has_other_ranks() and time.monotonic() < deadline:
            time.sleep(0.05)
        if message is not None and (number := self._signal()):
            return self._interruption.interruption_error(number)
        broken = any(words in str(error) for words in _CONNECTION_LOST)
        if message is None and broken and dist.is_available() and dist.is_initialized():
            message = (
                "The connection to another process of the run was lost. That process's message, above, gives the cause."
            )
        return error if message is None else RunError(f"{message}\n{self._hint}")

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        processes = [process for launcher in self._launchers for process in launcher.procs]
        _started.extend(process for process in processes if process not in _started)
        return processes

    def _has_other_ranks(self) -> bool:
        return self._parent is not None or bool(self._processes())

    def _lost(self) -> str | None:
        """Return what happened to a process of this run; None while all of them are alive."""
        if self._parent is not None and os.getppid() != self._parent:
            return "The first process of the run has ended before the others."
        for number, process in enumerate(self._processes(), 1):
            if status := process.poll():
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"has failed (status {status})"
                return f"Process {number} of the run {how}, so the others cannot continue."
        return None if self._heartbeats is None else self._heartbeats.missing()

    def _signal(self) -> int:
        """Return the signal that asked the run to stop, here or in a process that it ended; 0 for none."""
        asked = [-status if status < 0 else status - 128 for p in self._processes() if (status := p.poll())]
        return self._interruption.number or next((number for number in asked if number in SIGNALS), 0)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            if (message := self._lost()) is None:
                self._silence_lightning()
                continue
            # give a training loop `patience_s` to save its step
            self._interruption.number = self._signal()
            if self._over.wait(self._patience_s):
                return
            # the main thread may hang in a call that no exception can interrupt
            stopped = self._interruption.interruption_error(number) if (number := self._signal()) else None
            text = str(stopped) if stopped is not None else f"{process_name()}: {message}\n{self._hint}"
            print(text, file=sys.stderr, flush=True)
            for process in self._processes():
                process.kill()
            os._exit(1 if stopped is None else stopped.status)

    def _silence_lightning(self) -> None:
        """Empty the process list of Lightning's observer, which would otherwise kill this process without a message."""
        for thread in threading.enumerate():
            if thread.name == "child-process-observer" and getattr(thread, "_child_processes", None):
                thread._child_processes = []  # type: ignore[attr-defined]


def check_strategy(trainer: pl.Trainer) -> None:
    """Refuse strategies for several devices that this program does not support.

    Raises:
        UserError: The strategy shards the network, or copies this process instead of starting the program again.
    """
    known = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    if not known or isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        name = type(trainer.strategy).__name__
        raise UserError(
            f"trainer.strategy: Lightning chose {name}, which shards the network or copies this process. Set "
            "trainer.strategy=ddp, which starts the program once for each device and needs a script or the command, not a "
            "notebook; or trainer.devices=1."
        )


def end_other_ranks(*, patience_s: float = 60.0) -> None:
    """Wait for the processes that this one started to end, and close the connection to them."""
    deadline = time.monotonic() + patience_s
    if _started:
        torch.set_num_threads(_threads_at_import)
    for process in _started:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
    _started.clear()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


# Lightning divides the cores among the processes; the next job of a sweep gets all of them back
_threads_at_import = torch.get_num_threads()
