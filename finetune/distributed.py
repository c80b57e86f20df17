"""Which of several processes this one is, known before torch or Lightning is imported."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# as set by torchrun, by Lightning's own launcher, and by SLURM
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
# how many processes there are: torchrun's word, and that of a SLURM job step
_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# handed down to the processes that Lightning starts: where the run lies, and who started them
RUN_DIR_OF_RUN, STARTED_BY = "FINETUNE_RUN_DIR", "FINETUNE_STARTED_BY"
# what Lightning leaves in the environment once it has started processes
_LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")


def is_rank_zero() -> bool:
    """Whether this is the one process of a run that talks and writes."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def process_name() -> str:
    """This process among those of the run, for messages: ``process 3``, or ``process 1 of node 2``."""
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        return f"process {os.environ.get('RANK') or os.environ['SLURM_PROCID']}"
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return f"process {os.environ.get('LOCAL_RANK', '0')}" + (f" of node {node}" if node != "0" else "")


def started_together() -> bool:
    """Whether the processes of the run were all started from outside: by torchrun, by SLURM, or by hand on each node."""
    return RUN_DIR_OF_RUN not in os.environ and (
        not is_rank_zero() or any(int(os.environ.get(name) or 1) > 1 for name in _SIZES)
    )


def ignore_signals_to_the_group() -> None:
    """Called in loader processes: a signal to all processes of a run is answered by the one that trains, which ends these.

    A scheduler, a terminal and ``kill -- -GROUP`` send to all of them, and a loader that dies turns the step in hand into an
    error. The second SIGTERM is obeyed: by it a DataLoader ends a process that takes too long.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def process_lives(pid: int) -> bool:
    """Whether there is a process of that number on this machine; where the system cannot tell, it counts as there."""
    if os.name == "nt":  # a signal of number 0 would be Ctrl-C there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def environment_restored() -> Iterator[None]:
    """What Lightning and a run write into the environment is gone after the block.

    Lightning takes a ``LOCAL_RANK`` that it finds as a sign that the other processes exist already; the next job of a
    sweep would wait for them for ever.
    """
    names = (*_LAUNCHED, RUN_DIR_OF_RUN, STARTED_BY)
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
