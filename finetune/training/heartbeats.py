"""Heartbeats between the processes of a run on several machines: which of them is gone, by its number and its host.

torch bounds every collective by one time, after which it names nobody, and in which rank 0 must have done what it does alone too.
Here each process says that it lives, whatever it computes: a dead machine, a cut link or a process that never came is named after
``timeout_s``, and a long computation of one of them ends nothing.

They go through the store by which torch's processes find each other (``TCPStore``), on the same port: rank 0
opens it before torch does, which shares it (``multi_tenant``). Where torchrun's agent holds the store, all are its clients.
"""

import contextlib
import os
import socket
import threading
import time
from datetime import timedelta

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its list of names

from finetune.distributed import STARTED_BY

# heartbeats in `timeout_s`; one may be late
_BEATS = 10
_LONGEST_BEAT_S = 10.0
# what a process says that has done its part; how long that may take
_FAREWELL, _FAREWELL_S = "done", 2.0


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
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        now = time.monotonic()
        # rank 0 listens to all, the others to rank 0, which ends the run for all
        heard = [other for other in (range(world) if rank == 0 else [0]) if other != rank]
        self._heard = dict.fromkeys(heard, now)
        self._last: dict[int, bytes] = {}

    def start(self) -> None:
        """Begin, in a thread of its own: a call to the store may wait as long as the link is cut."""
        self._thread.start()

    def stop(self, *, well: bool) -> None:
        """End.

        Args:
            well: Whether this process has done its part, so that the others need not miss it.
        """
        self._well = well
        self._over.set()
        self._thread.join(_FAREWELL_S)

    def missing(self) -> str | None:
        """Return which processes are gone; None while all are heard of."""
        now = time.monotonic()
        gone = [rank for rank, heard in list(self._heard.items()) if now - heard > self._timeout_s]
        if not gone:
            return None
        names = ", ".join(self._name(rank) for rank in gone)
        return (
            f"Not heard of for {self._timeout_s:g} s: {names}. It has ended, its machine is down, or the link to it is cut. "
            "trainer.timeout_s sets the time."
        )

    def _name(self, rank: int) -> str:
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
            if self._over.wait(every):
                break
        if store is not None and self._well:
            with contextlib.suppress(RuntimeError):
                store.set(self._key(self._rank), _FAREWELL)

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
