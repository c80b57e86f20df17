"""Changes of the command-line process for speed: Python's garbage collection and glibc's allocator.

The commands use it, and :mod:`finetune.runners` for them. Importing the package, loading a model or building a module from
Python changes neither (``tests/test_imports.py``).
"""

import atexit
import contextlib
import ctypes
import gc
import os
import sys
import threading
from typing import NoReturn

_DEFAULT_THRESHOLD = gc.get_threshold()
# new containers between two collections of the youngest generation, and such collections between those of the older ones
_RARE_THRESHOLD = (100_000, 20, 100)
# parameters of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
_DEFAULT_MMAP_MAX, _LARGE_BLOCK_BYTES = 65_536, 2**20


def collect_garbage_rarely() -> None:
    """Postpone garbage collection while libraries are imported.

    The imports of a training run create a million objects, none of which is garbage: repeated collections took 1.4 of
    5.0 s (Python 3.11, two cores, median of three).
    """
    gc.set_threshold(*_RARE_THRESHOLD)


def collect_garbage_as_usual() -> None:
    """Undo :func:`collect_garbage_rarely` after the imports; objects that exist by then are never searched again."""
    if gc.get_threshold() == _RARE_THRESHOLD:
        gc.freeze()
        gc.set_threshold(*_DEFAULT_THRESHOLD)


def leave(status: int) -> NoReturn:
    """End a command's process as multiprocessing ends its own: run exit functions, flush buffers, skip the module teardown.

    Tearing down all modules of torch takes seconds, and compiled extensions print lists of objects that they call leaked.
    """
    busy = any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
    if "torch" not in sys.modules or busy:
        sys.exit(status)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        # Python reports this error in its own way
        sys.exit(status)
    os._exit(status)


def retain_freed_blocks() -> None:
    """Make the allocator keep freed blocks for the next batch.

    Glibc returns a freed block of more than 32 MB to the kernel, and the kernel clears it page by page when the next batch
    allocates it: a tenth of the time of training a whole ResNet-18 on two cores.
    """
    _mallopt(M_MMAP_MAX, 0)
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    # one arena, because each image-reading thread would otherwise keep its own blocks (35 MB more)
    _mallopt(M_ARENA_MAX, 1)


def release_freed_blocks(worker: int = 0) -> None:
    """Return large blocks to the kernel as soon as they are freed, in a loader process or after training.

    Args:
        worker: Unused; makes this a ``worker_init_fn`` of a DataLoader.
    """
    _mallopt(M_MMAP_MAX, _DEFAULT_MMAP_MAX)
    _mallopt(M_TRIM_THRESHOLD, _LARGE_BLOCK_BYTES)
    _mallopt(M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def free_memory() -> None:
    """Collect garbage and return the allocator's free memory to the kernel.

    Used between phases: a Trainer is part of a reference cycle and keeps its loader processes alive, and every newly forked
    loader process would hold another copy of the free memory.
    """
    gc.collect()
    # glibc only; ctypes raises TypeError on Windows, which has no default library
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(parameter, value)
