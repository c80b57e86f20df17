"""What a process of the command line does without at its start and at its end: Python's search for garbage.

The libraries make a million objects while they are imported, and none of them is garbage: searching them again and again
took 1.4 of the 5.0 seconds that the imports of a training run need, and once more, 2.0 seconds at its end (Python 3.11, two
cores; the imports a median of three, the end timed once).
"""

import atexit
import contextlib
import ctypes
import gc
import os
import sys
import threading
from typing import NoReturn

_USUAL = gc.get_threshold()
# new containers between two searches among the young, and searches among the young before one among all
_RARELY = (100_000, 20, 100)
# objects set apart: fewer are none of ours
_MANY = 100_000


def collect_rarely() -> None:
    """Called before the heavy imports."""
    gc.set_threshold(*_RARELY)


def collect_as_usual() -> None:
    """Called after them: what is there stays, and only what is made from now on is searched. Once a process."""
    if gc.get_threshold() == _RARELY:
        gc.freeze()
        gc.set_threshold(*_USUAL)


def leave(status: int) -> NoReturn:
    """End the process as multiprocessing ends its own: exit functions, buffers, and no taking apart of every module."""
    if "torch" not in sys.modules or any(
        not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()
    ):
        sys.exit(status)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        # Python says so in its own way
        sys.exit(status)
    os._exit(status)


def give_back_memory() -> None:
    """What is garbage now, and what the allocator keeps for later, goes back to the system.

    Called between phases: a Trainer is part of circles of references, and keeps its loader's processes alive; and memory that
    is free at the moment when loader processes are forked would be kept once more by each of them. Where nothing was set
    apart by :func:`collect_as_usual`, the search would take longer than it is worth.
    """
    if gc.get_freeze_count() > _MANY:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # of glibc
        ctypes.CDLL(None).malloc_trim(0)
