"""The rank of this process among the processes of a run, known before torch or Lightning is imported."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from finetune.counted import counted
from finetune.errors import UserError

# set by torchrun, by Lightning's own launcher, and by SLURM
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
# set by torchrun alone
_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
# number of processes: set by torchrun, and for a SLURM job step
_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
# passed to the processes that Lightning starts: the run folder, and the process that started them
RUN_DIR_OF_RUN, STARTED_BY = "FINETUNE_RUN_DIR", "FINETUNE_STARTED_BY"
# variables that Lightning leaves in the environment after it has started processes
_LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")

# loader processes wait for storage and share their memory; a rank on a processor has a network and gradients of its own
MOST_LOADERS_PER_CORE, MOST_RANKS_PER_CORE = 16, 4


def is_rank_zero() -> bool:
    """Tell whether this is the one process of a run that prints and writes."""
    if _BY_TORCHRUN in os.environ:
        # inside SLURM, whose numbers of the nodes need not be those that its agents agree on
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def process_name() -> str:
    """Return the name of this process for messages: ``process 3``, or ``process 1 of node 2``."""
    if "RANK" in os.environ or "SLURM_PROCID" in os.environ:
        return f"process {os.environ.get('RANK') or os.environ['SLURM_PROCID']}"
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return f"process {os.environ.get('LOCAL_RANK', '0')}" + (f" of node {node}" if node != "0" else "")


def started_together() -> bool:
    """Tell whether all processes of the run were started from outside: by torchrun, by SLURM, or by hand on each node."""
    return RUN_DIR_OF_RUN not in os.environ and (
        not is_rank_zero() or any(int(os.environ.get(name) or 1) > 1 for name in _SIZES)
    )


def knows_other_machines() -> bool:
    """Tell whether this process was told where the other machines of a run are: by torchrun, by SLURM, or by hand."""
    return started_together() or "MASTER_ADDR" in os.environ


def processes_started() -> tuple[int, int] | None:
    """Return how many nodes, and processes on each, torchrun or srun has started; None if neither started this process."""
    if _BY_TORCHRUN in os.environ:
        total, each = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return total // each, each
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        total, nodes = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ["SLURM_STEP_NUM_NODES"])
        return nodes, total // nodes
    return None


def ignore_signals_to_the_group() -> None:
    """Make a loader process ignore signals to all processes of a run; the training process handles them and ends its loaders.

    A scheduler, a terminal and ``kill -- -GROUP`` signal all of them, and a loader that dies turns the current step into an
    error. The second SIGTERM takes effect, because a DataLoader uses it to end a process that takes too long.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def process_lives(pid: int) -> bool:
    """Tell whether a process with this id exists on this machine; assumed to exist if the system cannot tell."""
    if os.name == "nt":  # signal number 0 would be Ctrl-C there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_processes(number: int, *, setting: str, per_core: int) -> None:
    """Refuse more processes than this machine can hold.

    A saved configuration, or a typo, can ask for any number, and each process takes memory before it does anything.

    Args:
        number: Processes that would be started.
        setting: Name of the setting that asks for them.
        per_core: Most processes for each core of this process.

    Raises:
        UserError: There would be more.
    """
    if number > per_core * cores():
        raise UserError(
            f"{setting}={number}: at most {per_core * cores()} processes on this machine, {per_core} for each of its "
            f"{counted(cores(), 'core')}. Use fewer."
        )


@contextmanager
def environment_restored() -> Iterator[None]:
    """Restore after the block the environment variables that Lightning and a run set.

    Lightning takes an existing ``LOCAL_RANK`` as a sign that the other processes already exist; the next job of a sweep would
    wait for them forever.
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
