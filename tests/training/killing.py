"""Kill a run with SIGKILL at the n-th of its events, resume it, and compare with the uninterrupted run.

Events are the moments at which a kill could do harm: each training, validation and test batch, each optimizer step, and
each atomic write before it, in the middle of its bytes, before its rename and after it. They are counted in the run itself,
so the n-th event is the same moment each time. Runs are forked from this process: torch is imported once.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import finetune.atomic_files
import finetune.bundle
import finetune.models.weights
import finetune.run_folder
import finetune.training.callbacks.checkpoints
import finetune.training.callbacks.metrics_csv
import finetune.training.run
from finetune.commands.resume import resume
from finetune.training.module import FineTuner
from tests.runs import train_tiny

HOLDERS = (
    finetune.atomic_files,
    finetune.bundle,
    finetune.training.callbacks.checkpoints,
    finetune.training.run,
    finetune.models.weights,
)


class Events:
    """Counts moments of a run, and dies at one of them.

    Args:
        die_at: Number of the event; -1 lives.
        log: Gets the name of each event, a line each.
    """

    def __init__(self, *, die_at: int = -1, log: Path | None = None) -> None:
        self.count, self._die_at, self._log = 0, die_at, log

    def moment(self, name: str, before_dying: Callable[[], None] = lambda: None) -> None:
        """One event."""
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{name}\n")
        if self.count == self._die_at:
            before_dying()
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def install(self) -> None:
        """Put the moments into this process's code; only ever called in a forked child."""
        for name in ("training_step", "validation_step", "test_step", "optimizer_step"):
            self._wrap(FineTuner, name)
        real = finetune.atomic_files.atomic_path

        @contextmanager
        def watched(target: Any) -> Any:
            label = f"write {Path(target).parent.name}/{Path(target).name}"
            self.moment(f"{label}: before")
            with real(target) as part:
                yield part

                def halve() -> None:
                    with part.open("r+b") as file:
                        file.truncate(part.stat().st_size // 2)

                self.moment(f"{label}: half written", halve)
                self.moment(f"{label}: not yet renamed")
            self.moment(f"{label}: renamed")

        for holder in HOLDERS:
            if hasattr(holder, "atomic_path"):
                holder.atomic_path = watched  # type: ignore[attr-defined]

    def _wrap(self, owner: type, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(module: Any, *args: Any, **kwargs: Any) -> Any:
            self.moment(name)
            return real(module, *args, **kwargs)

        setattr(owner, name, wrapped)


def forked(job: Callable[[], None], events: Events, output: Path) -> int:
    """Run a job in a child process; returns its exit status, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with output.open("a", buffering=1) as file:
                # pytest has put objects of its own in the place of these
                sys.stdout = sys.stderr = file
                torch.set_num_threads(1)
                events.install()
                try:
                    job()
                    status = 0
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_whole(words: list[str], run_dir: Path, *, log: Path | None = None) -> int:
    """The uninterrupted run; returns the number of its events."""
    log = log or run_dir.with_suffix(".events")
    output = run_dir.with_suffix(".out")
    status = forked(lambda: train_tiny(words, run_dir) and None, Events(log=log), output)
    assert status == 0, output.read_text()
    return len(log.read_text().splitlines())


def run_killed(words: list[str], run_dir: Path, *, kills: list[int]) -> int:
    """A run that dies at each of these events in turn, counted anew in each process, and then goes on to its end.

    Returns:
        How many of the kills struck before the run was over.
    """
    output = run_dir.with_suffix(".out")
    struck = 0
    for die_at in kills:
        begun = (run_dir / "run.json").is_file()

        def job(begun: bool = begun) -> None:
            if begun:
                resume(run_dir)
            else:
                # nothing was kept yet: the user starts again in the same place
                for stale in sorted(run_dir.glob("*")) if run_dir.is_dir() else []:
                    stale.unlink()
                train_tiny(words, run_dir)

        status = forked(job, Events(die_at=die_at), output)
        assert status in (0, -signal.SIGKILL), output.read_text()
        struck += status != 0
    if not (run_dir / "run.json").is_file():
        return struck + run_killed(words, run_dir, kills=[-1])
    status = forked(lambda: resume(run_dir), Events(), output)
    assert status == 0, output.read_text()
    return struck
