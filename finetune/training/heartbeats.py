"""Heartbeats between the processes of a run on several machines: which of them is gone, by its number and its host.

torch bounds every collective by one time, after which it names nobody, and in which rank 0 must have done what it does alone too.
Here each process says that it lives, whatever it computes: a dead machine, a cut link or a process that never came is named after
``timeout_s``, and a long computation of one of them ends nothing.

They go through the store by which torch's processes find each other (``TCPStore``), on the same port: rank 0
opens it before torch does, which shares it (``multi_tenant``). Where torchrun's agent holds the store, all are its clients.

They begin before anything is loaded. By the same store process 0 tells the others when it holds the run folder and the record of
the run lies there; before that, the process that held the folder before may still write to it.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its list of names

from finetune.distributed import STARTED_BY
from finetune.errors import RunError

# heartbeats in `timeout_s`; one may be late
_BEATS = 10
_LONGEST_BEAT_S = 10.0
# what a process says that has done its part; how long that may take
_FAREWELL, _FAREWELL_S = "done", 2.0
# by which process 0 says that it holds the run folder, and how often the others look for it
_READY, _LOOK_S = "finetune/ready", 0.1


class Heartbeats:
    """Tells the other processes that this one lives, and learns which of them do.

    Args:
        rank: Number of this process.
        world: Number of processes.
        address: Host and port of the store, which rank 0 opens if no agent of torchrun holds it.
        timeout_s: Seconds without a heartbeat after which a process counts as gone.
    """

    def __init__(self, *, rank: int, world: int, address: tuple[str, int], timeout_s: float) -> None:
        self._rank, self._world, self._address, self._timeout_s = rank, world, address, timeout_s
        self._over, self._well = threading.Event(), False
        self._holds, self._ready = False, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        now = time.monotonic()
        # rank 0 listens to all, the others to rank 0, which ends the run for all
        heard = [other for other in (range(world) if rank == 0 else [0]) if other != rank]
        self._heard, self._since = dict.fromkeys(heard, now), now
        self._last: dict[int, bytes] = {}

    def start(self) -> None:
        """Begin, in a thread of its own: a call to the store may wait as long as the link is cut.

        From a second call on, a process that has not come yet has the whole time again: others may start it only now.
        """
        self._since = time.monotonic()
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self, *, well: bool) -> None:
        """End.

        Args:
            well: Whether this process has done its part, so that the others need not miss it.
        """
        if self._over.is_set():
            return
        self._well = well
        self._over.set()
        self._thread.join(_FAREWELL_S)

    def hold(self) -> None:
        """Tell the others, in process 0, that it holds the run folder and that the record of the run lies there."""
        self._holds = True

    def wait_for_holder(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Wait in another process until process 0 has called :meth:`hold`.

        Args:
            until: Function that ends the wait where it returns True.

        Raises:
            RunError: Process 0 is gone.
        """
        while not until() and not self._ready.wait(_LOOK_S):
            if (gone := self.missing()) is not None:
                raise RunError(gone)

    def missing(self) -> str | None:
        """Return which processes are gone; None while all are heard of."""
        late = time.monotonic() - self._timeout_s
        gone = [rank for rank, heard in list(self._heard.items()) if max(heard, self._since) < late]
        if not gone:
            return None
        names = ", ".join(self.name(rank) for rank in gone)
        return (
            f"Not heard of for {self._timeout_s:g} s: {names}. It has ended, its machine is down, or the link to it is cut. "
            "trainer.timeout_s sets the time."
        )

    def name(self, rank: int) -> str:
        """Name a process with its host, as far as it is known."""
        host = self._last[rank].decode().partition(" ")[2] if rank in self._last else ""
        if not host and rank == 0:
            host = "{}:{}".format(*self._address)
        where = f"on {host}" if host else "which never came"
        return f"process {rank} of {self._world} ({where})"

    def _beat(self) -> None:
        every = min(self._timeout_s / _BEATS, _LONGEST_BEAT_S)
        store = None
        for number in range(10**9):
            # a store that cannot be reached answers by an error or not at all; `missing` tells of it
            with contextlib.suppress(RuntimeError):
                store = store or self._open()
                store.set(self._key(self._rank), f"{number} {socket.gethostname()}")
                for rank in list(self._heard):
                    self._listen(store, rank)
            if self._rest(store, every):
                break
        if store is not None and self._well:
            with contextlib.suppress(RuntimeError):
                store.set(self._key(self._rank), _FAREWELL)

    def _rest(self, store: TCPStore | None, seconds: float) -> bool:
        """Wait for the next heartbeat, and first for process 0 to hold the run folder; return whether this is the end."""
        end = time.monotonic() + seconds
        while not self._ready.is_set() and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(RuntimeError):
                if store is not None and self._holds:
                    store.set(_READY, "")
                if store is not None and store.check([_READY]):
                    self._ready.set()
            if self._over.wait(min(_LOOK_S, left)):
                return True
        return self._over.wait(max(end - time.monotonic(), 0.0))

    def _open(self) -> TCPStore:
        host, port = self._address
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return TCPStore(
            host,
            port,
            is_master=self._rank == 0 and not agent,
            timeout=timedelta(seconds=self._timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _listen(self, store: TCPStore, rank: int) -> None:
        if not store.check([self._key(rank)]) or (beat := store.get(self._key(rank))) == self._last.get(rank):
            return
        self._last[rank], self._heard[rank] = beat, time.monotonic()
        if beat == _FAREWELL.encode():
            del self._heard[rank]

    def _key(self, rank: int) -> str:
        # not by the number of torchrun's attempt, which its agents count differently
        return f"finetune/{rank}"


def heartbeats_of(trainer: pl.Trainer, *, timeout_s: float) -> Heartbeats | None:
    """Return the heartbeats of a run whose processes nobody on this machine watches.

    Those that one command starts on one machine watch each other (:mod:`finetune.training.rank_monitor`); None for them.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or strategy.cluster_environment is None:
        return None
    environment = strategy.cluster_environment
    started_apart = environment.creates_processes_externally and STARTED_BY not in os.environ
    world = strategy.num_nodes * strategy.num_processes
    if world < 2 or (strategy.num_nodes == 1 and not started_apart):
        return None
    rank = environment.node_rank() * strategy.num_processes + environment.local_rank()
    address = (environment.main_address, environment.main_port)
    return Heartbeats(rank=rank, world=world, address=address, timeout_s=timeout_s)
