"""Send a run a signal at the n-th of its events, resume it, and compare with the uninterrupted run.

Events are the moments at which a kill could do harm: each training, validation and test batch, each optimizer step, and
each atomic write before it, in the middle of its bytes, before its rename and after it. They are counted in the run itself,
so the n-th event is the same moment each time. SIGKILL ends the run there, with half a file where it writes one; any other
signal is answered by the run itself. Runs are forked from this process: torch is imported once.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

import finetune.atomic_files
import finetune.bundle
import finetune.checksums
import finetune.models.weights
import finetune.run_folder
import finetune.training.callbacks.checkpoints
import finetune.training.metrics_csv
from finetune.activation_cache.store import Entry
from finetune.errors import Interrupted
from finetune.runners.resume import resume
from finetune.training.evaluation import EvaluationModule
from finetune.training.phase_module import PhaseModule
from finetune.training.rate_trials import RateTrials
from tests.runs import train_tiny

HOLDERS = (
    finetune.atomic_files,
    finetune.bundle,
    finetune.checksums,
    finetune.training.callbacks.checkpoints,
    finetune.models.weights,
)


class Strike(NamedTuple):
    """A signal at an event.

    Args:
        at: Number of the event, or text that its name begins with and how many such events come before it.
        number: Of the signal.
        group: Send it to the loader processes too.
        after_s: Send it so many seconds after the start of the process instead of at an event.
        times: How often, a second apart.
    """

    at: int | tuple[str, int]
    number: int = signal.SIGKILL
    group: bool = False
    after_s: float | None = None
    times: int = 1


class Events:
    """Counts moments of a run, and sends this process a signal at one of them.

    Args:
        strike: Which signal, and when; None sends none.
        log: Gets the name of each event, a line each.
    """

    def __init__(self, *, strike: Strike | None = None, log: Path | None = None) -> None:
        self.count, self.strike, self._log = 0, strike, log
        self._named = 0

    def moment(self, name: str, before_dying: Callable[[], None] = lambda: None) -> None:
        """One event."""
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{name}\n")
        due = self._due(name)
        self.count += 1
        if due:
            assert self.strike is not None
            if self.strike.number == signal.SIGKILL:
                before_dying()
            for again in range(self.strike.times):
                time.sleep(1 if again else 0)
                if self.strike.group:
                    os.killpg(os.getpgid(0), self.strike.number)
                else:
                    os.kill(os.getpid(), self.strike.number)

    def _due(self, name: str) -> bool:
        if self.strike is None or self.strike.after_s is not None:
            return False
        if isinstance(self.strike.at, int):
            return self.count == self.strike.at
        wanted, before = self.strike.at
        self._named += name.startswith(wanted)
        return name.startswith(wanted) and self._named == before + 1

    def install(self) -> None:
        """Put the moments into this process's code; only ever called in a forked child."""
        for name in ("training_step", "validation_step", "optimizer_step"):
            self._wrap(PhaseModule, name)
        self._wrap(EvaluationModule, "test_step")
        self._wrap(RateTrials, "_step")
        self._wrap(Entry, "write")
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
    strike = events.strike
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with output.open("a", buffering=1) as file:
                # pytest has put objects of its own in the place of these
                sys.stdout = sys.stderr = file
                torch.set_num_threads(1)
                # nohup, under which the tests may run, has this one ignored
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                os.setpgid(0, 0)
                # a shell that starts the tests in the background makes them deaf to it
                signal.signal(signal.SIGINT, signal.default_int_handler)
                events.install()
                try:
                    job()
                    status = 0
                except Interrupted as stopped:
                    print(stopped)
                    status = stopped.status
                except KeyboardInterrupt:
                    # before the run listens
                    status = 128 + signal.SIGINT
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(status)
    if strike is not None and strike.after_s is not None:
        time.sleep(strike.after_s)
        # it may be over; nobody has waited for it, so its number is still its own
        os.kill(child, strike.number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_whole(words: list[str], run_dir: Path, *, log: Path | None = None) -> int:
    """The uninterrupted run; returns the number of its events."""
    log = log or run_dir.with_suffix(".events")
    output = run_dir.with_suffix(".out")
    status = forked(lambda: train_tiny(words, run_dir) and None, Events(log=log), output)
    assert status == 0, output.read_text()
    return len(log.read_text().splitlines())


def run_killed(
    words: list[str], run_dir: Path, *, kills: Sequence[int | Strike], resume_with: Callable[[Path], None] = resume
) -> int:
    """A run that is struck at each of these events in turn, counted anew in each process, and then goes on to its end.

    Its events are logged over all processes, in a file beside the run's folder.

    Args:
        words: Overrides of the run.
        run_dir: Its folder.
        kills: The events; a number alone kills.
        resume_with: Resumes it.

    Returns:
        How many of the strikes ended a process before the run was over.
    """
    output, log = run_dir.with_suffix(".out"), run_dir.with_suffix(".events")
    struck = 0
    for kill in kills:
        strike = kill if isinstance(kill, Strike) else Strike(kill)
        status = forked(lambda: _go_on(words, run_dir, resume_with), Events(strike=strike, log=log), output)
        # before the run listens, a signal ends the process by itself
        assert status in (0, -strike.number, 128 + strike.number), output.read_text()
        struck += status != 0
    status = forked(lambda: _go_on(words, run_dir, resume_with), Events(log=log), output)
    assert status == 0, output.read_text()
    return struck


def _go_on(words: list[str], run_dir: Path, resume_with: Callable[[Path], None]) -> None:
    if (run_dir / "run.json").is_file():
        resume_with(run_dir)
        return
    # nothing was kept yet: the user starts again in the same place
    for stale in sorted(run_dir.glob("*")) if run_dir.is_dir() else []:
        stale.unlink()
    train_tiny(words, run_dir)


def steps_of(run_dir: Path) -> dict[str, int]:
    """How many training batches and optimizer steps the processes of a run did in all."""
    events = run_dir.with_suffix(".events").read_text().splitlines()
    return {name: events.count(name) for name in ("training_step", "optimizer_step", "_step")}
