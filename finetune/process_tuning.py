"""What a process of the command line does without at its start and at its end: Python's search for garbage.

The libraries make a million objects while they are imported, and none of them is garbage: searching them again and again
took 1.4 of the 5.0 seconds that the imports of a training run need, and once more, 2.0 seconds at its end (Python 3.11, two
cores; the imports a median of three, the end timed once).
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import sys
import threading
from types import ModuleType
from typing import NoReturn

_USUAL = gc.get_threshold()
# new containers between two searches among the young, and searches among the young before one among all
_RARELY = (100_000, 20, 100)
# parameters of glibc's mallopt
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
_USUAL_MMAP_MAX, _BLOCK_BYTES = 65_536, 2**20
# objects set apart: fewer are none of ours
_MANY = 100_000


def collect_garbage_rarely() -> None:
    """Called before the heavy imports."""
    gc.set_threshold(*_RARELY)


def collect_garbage_as_usual() -> None:
    """Called after them: what is there stays, and only what is made from now on is searched. Once a process."""
    if gc.get_threshold() == _RARELY:
        gc.freeze()
        gc.set_threshold(*_USUAL)


def import_torchmetrics() -> None:
    """Import it without ``scipy.signal``, which it only wants to give a lost name back to another package, of audio.

    With what that imports it is a third of a training run's imports after torch's own, 0.6 s and 58 MB; the report, which
    draws with scikit-learn, needs a part of it, at a moment when nothing trains.
    """
    name = "scipy.signal"
    if name in sys.modules or "torchmetrics" in sys.modules:
        return
    stand_in = ModuleType(name)
    stand_in.hamming = None  # type: ignore[attr-defined]  # the name
    sys.modules[name] = stand_in
    # another torchmetrics may want more of it: whoever imports it next gets the real one
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("torchmetrics")
    if sys.modules.get(name) is stand_in:
        del sys.modules[name]


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


def retain_freed_blocks(computes_on: str) -> None:
    """From now on the allocator keeps what is freed for the next time, where a process of the command line computes on a CPU.

    Glibc's hands a block of more than 32 MB back to the system when it is freed, and the system clears it, page by page, when the
    next batch asks for it: a tenth of the time of training a whole ResNet-18 on two cores.
    """
    if computes_on == "cpu" and gc.get_freeze_count() > _MANY:
        _mallopt(M_MMAP_MAX, 0)
        _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        # or each thread that reads images would keep blocks of its own: 35 MB more
        _mallopt(M_ARENA_MAX, 1)


def release_freed_blocks() -> None:
    """The opposite, for loader processes and after training: large blocks are the system's again as soon as they are free."""
    _mallopt(M_MMAP_MAX, _USUAL_MMAP_MAX)
    _mallopt(M_TRIM_THRESHOLD, _BLOCK_BYTES)
    _mallopt(M_MMAP_THRESHOLD, _BLOCK_BYTES)


def _mallopt(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # of glibc; Windows takes no None
        ctypes.CDLL(None).mallopt(parameter, value)


def collect_garbage() -> None:
    """What is garbage now, and what the allocator keeps for later, goes back to the system.

    Called between phases: a Trainer is part of circles of references, and keeps its loader's processes alive; and memory that
    is free at the moment when loader processes are forked would be kept once more by each of them. Where nothing was set
    apart by :func:`collect_garbage_as_usual`, the search would take longer than it is worth.
    """
    if gc.get_freeze_count() > _MANY:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # of glibc; Windows takes no None
        ctypes.CDLL(None).malloc_trim(0)
