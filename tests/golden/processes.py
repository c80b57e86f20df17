"""Runs commands in forks of this process, which has imported all that is slow to import."""

import importlib
import os
import pkgutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# a command that hangs ends the whole script; on a crowded machine commands may take their time
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Answer:
    """What a command gave back: its exit status and what it printed."""

    status: int
    out: str
    err: str


def forked(
    job: Callable[[], int], output: Path, *, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> int:
    """Start a job in a fork; its standard output and error go to ``output.out`` and ``output.err``. Returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        for number, suffix in ((1, "out"), (2, "err")):
            target = os.open(f"{output}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(target, number)
            os.close(target)
        silent = os.open(os.devnull, os.O_RDONLY)
        os.dup2(silent, 0)
        # pytest has put its own objects in the place of the streams
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
        os.environ.update(environment or {})
        if cwd is not None:
            os.chdir(cwd)
        status = job()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def awaited(children: Sequence[int], *, patience_s: float = PATIENCE_S) -> list[int]:
    """Return the exit statuses of forks; all that are left are killed once patience runs out."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + patience_s
    while len(statuses) < len(children):
        for child in set(children) - set(statuses):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for child in set(children) - set(statuses):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise TimeoutError(f"{len(children) - len(statuses)} of {len(children)} processes hung")
        time.sleep(0.005)
    return [statuses[child] for child in children]


def finetune_main(*words: str) -> int:
    """Call the command line as ``python -m finetune`` does."""
    from finetune.cli import main

    sys.argv = ["finetune", *words]
    return int(main(list(words)))


def command(*words: str, cwd: Path, log: Path, processes: int = 1) -> Answer:
    """Run a command line, in several processes that find each other as those of a cluster do.

    Args:
        *words: What follows ``finetune``.
        cwd: Working directory.
        log: Where the output goes, in files with endings.
        processes: How many; what the first of them prints is returned, and the first status that is not 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environments: list[dict[str, str]] = [{}]
    if processes > 1:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
        shared["WORLD_SIZE"] = str(processes)
        environments = [{**shared, "LOCAL_RANK": str(rank)} for rank in range(processes)]
    outputs = [log.with_name(f"{log.name}.{rank}") for rank in range(processes)]
    children = [
        forked(lambda: finetune_main(*words), output, cwd=cwd, environment=environment)
        for output, environment in zip(outputs, environments, strict=True)
    ]
    statuses = awaited(children)
    out, err = (Path(f"{outputs[0]}.{suffix}").read_text(encoding="utf-8") for suffix in ("out", "err"))
    return Answer(next((status for status in statuses if status), 0), out, err)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def warm_up() -> None:
    """Import what the package's public names need, so that forks need not."""
    import torch

    import finetune

    for name in finetune.__all__:
        getattr(finetune, name)
    # the first backward pass of a process starts threads for the devices known by then, and there are none yet
    torch.autograd.backward(torch.zeros(1, requires_grad=True))
    torch.set_num_threads(1)


def import_everything() -> None:
    """Import every module of the package, whatever its name is at this revision."""
    import finetune

    for module in pkgutil.walk_packages(finetune.__path__, "finetune."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("timm", "torchvision", "torchmetrics", "lightning.pytorch", "onnxruntime"):
        importlib.import_module(name)
