"""A job: one run of a command on a composed configuration, alone or in a sweep, where it writes a record."""

import logging
import math
import os
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.atomic_files import write_json
from finetune.checksums import verify
from finetune.commands.slurm import is_ending, know_ended_jobs, requeue_by_submitit
from finetune.config import to_config
from finetune.config.given import given_in_files
from finetune.config.ineffective_settings import notes, report
from finetune.config.overrides import values_of
from finetune.config.schema import Config
from finetune.distributed import environment_restored, is_rank_zero
from finetune.errors import Interrupted, RunError, UserError, first_line
from finetune.file_errors import in_words
from finetune.plain import Json, from_plain, to_plain
from finetune.run_folder import JOBS, RunFolder
from finetune.safe_files import read_json
from finetune.terminal import GuardedStream
from finetune.terminal_log import show_log

log = logging.getLogger(__name__)

# status of a job of which nothing but its overrides is known
NOT_STARTED = "not started"


class Refused(BaseException):
    """A sweep that must not start; not an ``Exception``, because Hydra turns exceptions in callbacks into warnings."""


class SweepStart:
    """Hydra callback that learns the folder of a sweep before its first job (named in ``conf/train.yaml``)."""

    # folder and command of the sweep that this process has started
    folder: Path | None = None
    command: str = ""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Remember the folder, and refuse settings that would fail or mislead in every job."""
        folder = Path(str(config.hydra.sweep.dir)).absolute()
        if config.get("run_dir"):
            raise Refused(
                f"run_dir={config.run_dir}: the runs of a sweep cannot share a folder. hydra.sweep.dir=DIR chooses the "
                "folder that holds all of them."
            )
        direction = config.hydra.sweeper.get("direction")
        if direction is not None and not isinstance(direction, Sequence):
            direction = direction.name
        expected = "minimize" if smaller_is_better(str(config.monitor), config.metrics) else "maximize"
        if direction is not None and SweepStart.command != "train":
            raise Refused(
                f"finetune {SweepStart.command}: a sweeper cannot search over it, because its jobs produce no validation metric. "
                "Search with finetune train."
            )
        if direction not in (None, expected):
            raise Refused(
                f"hydra.sweeper.direction={direction}: does not fit monitor={config.monitor}, for which "
                f"{'smaller' if expected == 'minimize' else 'larger'} values are better. Set hydra.sweeper.direction={expected}."
            )
        try:
            # created at once: if two sweeps want the same folder, only one gets it
            (folder / JOBS).mkdir(parents=True)
        except FileExistsError:
            raise Refused(f"hydra.sweep.dir={folder}: already holds a sweep. Choose another folder.") from None
        except OSError as error:
            raise Refused(in_words(error, folder, "cannot be created", name=f"hydra.sweep.dir={folder}")) from error
        if str(config.hydra.launcher.get("_target_")).endswith(".SlurmLauncher"):
            know_ended_jobs()
        SweepStart.folder = folder
        print(f"sweep: {folder}", flush=True)
        for number, overrides in enumerate(_planned(config)):
            write_json(folder / JOBS / f"{number}.json", to_plain(_not_started(config, folder, number, overrides)))

    def __getattr__(self, name: str) -> Callable[..., None]:
        # Hydra calls a method for every event of every callback
        if name.startswith("on_"):
            return lambda **_: None
        raise AttributeError(name)


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """The record that a job of a sweep writes.

    Args:
        job: Number of the job.
        overrides: Its overrides.
        run_dir: Its run folder.
        monitor: Metric that decides which job is best.
        status: ``not started``, ``running``, ``finished``, ``failed`` or ``stopped``.
        val: Validation accuracy; None for a command that does not train; the same holds for test and monitored.
        test: Test accuracy.
        monitored: Validation value of the monitored metric.
        minimize: Whether smaller values of it are better.
        message: Reason of the failure; None if the job did not fail.
        mistake: Whether a mistake by the user was the cause; None if the job did not fail.
        seconds: Wall time; None until the job ends.
    """

    job: int
    overrides: tuple[str, ...]
    run_dir: str
    monitor: str
    status: str
    val: float | None = None
    test: float | None = None
    monitored: float | None = None
    message: str | None = None
    mistake: bool | None = None
    seconds: float | None = None
    minimize: bool = False

    def in_words(self) -> str:
        """Describe for the user how the job ended."""
        measured = (("val", self.val), ("test", self.test))
        figures = "".join(f"  {name} {value:.4f}" for name, value in measured if value is not None)
        why = f": {self.message.splitlines()[0]}" if self.message is not None else ""
        return f"{self.status}{why}{figures}  {self.seconds or 0.0:.0f} s"


def _planned(config: Any) -> list[list[str]]:
    """Return the overrides of each job that a sweep will have; nothing for a sweeper that chooses them one after the other."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(f".{BasicSweeper.__name__}"):
        return []
    words = [*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *config.hydra.overrides.task]
    with suppress(HydraException):  # the sweeper will refuse these values
        parsed = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(words)
        return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    return []


def _not_started(config: Any, folder: Path, number: int, overrides: Sequence[str]) -> JobRecord:
    return JobRecord(
        job=number,
        overrides=tuple(overrides),
        run_dir=str(folder / str(number)),
        monitor=str(config.monitor),
        status=NOT_STARTED,
    )


@dataclass(kw_only=True)
class Outcome:
    """How the task of a single run ended.

    Args:
        status: Exit status of the command.
        error: What the task raised; None if it raised nothing.
    """

    status: int = 0
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class _Metrics:
    """The part of ``results.json`` that a record needs."""

    val: Mapping[str, Json]
    test: Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class Job:
    """The function that Hydra calls: once, or in a sweep for each combination, here or in a process that a launcher starts.

    Args:
        task: Function that runs the command on a configuration and returns an exit status.
        words: Program, command and config folders: the words that every job's command line starts with.
        starter: Id of the process that started the sweep.
        common: Overrides that every job has.
        own_files: Whether the user has configurations of their own.
        outcome: Without a sweep, how the task ended.
    """

    task: Callable[[Config], int]
    words: tuple[str, ...]
    starter: int
    common: frozenset[str] = frozenset()
    own_files: bool = False
    outcome: Outcome = field(default_factory=Outcome)

    def __call__(self, composed: Any) -> float | None:
        """Run the task.

        Returns:
            In a sweep the monitored validation metric, which a sweeper may optimise; otherwise None.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        # DDP starts this program again with sys.argv, which must contain the command and, in a sweep, only this job's overrides
        sys.argv = [*self.words, *hydra.overrides.task]
        if hydra.mode == RunMode.MULTIRUN:
            return self._swept(composed, hydra)
        try:
            config = to_config(composed)
            report(config, self._given(composed, hydra))
            with environment_restored():
                self.outcome.status = self.task(config)
        except Exception as error:  # Hydra would add output of its own; the caller raises it again
            self.outcome.error = error
        return None

    def _given(self, composed: Any, hydra: Any) -> Mapping[str, Any]:
        """Return the settings that the user gave: typed, or in files of their own."""
        typed = values_of(list(hydra.overrides.task))
        if not self.own_files:
            return typed
        from omegaconf import OmegaConf

        return given_in_files(OmegaConf.to_container(composed), hydra.runtime.choices) | typed

    def _swept(self, composed: Any, hydra: Any) -> float | None:
        """Run one job of a sweep; raise only where a signal stops it, so that the other jobs run and every launcher continues."""
        number, folder = int(hydra.job.num), Path(hydra.sweep.dir).absolute() / JOBS
        # a job that its launcher has requeued goes on with its run
        composed.run_dir, composed.resume = hydra.runtime.output_dir, "auto"
        record = JobRecord(
            job=number,
            overrides=tuple(hydra.overrides.task),
            run_dir=str(composed.run_dir),
            monitor=str(composed.monitor),
            minimize=smaller_is_better(str(composed.monitor), composed.metrics),
            status="running",
        )
        file = folder / f"{number}.json"
        self._write(file, record)
        overrides = " ".join(word for word in record.overrides if word not in self.common)
        print(f"\njob {number}: {overrides}", flush=True)
        began = time.monotonic()
        requeue = requeue_by_submitit()
        try:
            with environment_restored(), self._output(folder / f"{number}.log"), _stopping_for(requeue):
                config = to_config(composed)
                self._warn_once(notes(config, self._given(composed, hydra)), folder)
                status = self.task(config)
            record = replace(
                with_metrics(record),
                status="finished" if status == 0 else "failed",
                message=None if status == 0 else f"ended with status {status}",
            )
        except Exception as error:
            if is_rank_zero():
                with (folder / f"{number}.log").open("a", encoding="utf-8") as log:
                    traceback.print_exception(error, file=log)
            mistake = isinstance(error, UserError)
            first = first_line(error, with_type=not mistake and not isinstance(error, RunError))
            record = replace(record, status="failed", message=str(error) if mistake else first, mistake=mistake)
        except KeyboardInterrupt as stopped:
            self._write(file, replace(record, status="stopped"))
            if requeue is not None and isinstance(stopped, Interrupted) and stopped.number != signal.SIGINT:
                print(f"job {number}: {stopped}", flush=True)
                if not is_ending():
                    requeue(stopped.number)
            raise
        record = replace(record, seconds=round(time.monotonic() - began, 1))
        self._write(file, record)
        print(f"job {number}: {record.in_words()}", flush=True)
        value = record.monitored
        return value if value is not None and math.isfinite(value) else None

    def _warn_once(self, lines: Sequence[str], folder: Path) -> None:
        """Warn of settings that have no effect, unless another job of the sweep has; a file for each line tells."""
        show_log()
        for line in lines if is_rank_zero() else ():
            with suppress(FileExistsError), (folder / f"{zlib.crc32(line.encode()):08x}.warning").open("x") as file:
                file.write(f"{line}\n")
                log.warning("%s", line)

    def _write(self, file: Path, record: JobRecord) -> None:
        if is_rank_zero():
            write_json(file, to_plain(record))

    @contextmanager
    def _output(self, log: Path) -> Iterator[None]:
        """Send the output of a job in another process to its log, so that parallel jobs do not mix their output."""
        if os.getpid() == self.starter:
            yield
            return
        with log.open("a", encoding="utf-8") as file, redirect_stdout(GuardedStream(file, str(log))):
            yield


@contextmanager
def _stopping_for(requeue: Callable[[int], None] | None) -> Iterator[None]:
    """Let a signal stop the block after its step is saved, in a job that is requeued then; submitit ignores SIGTERM."""
    if requeue is None:
        yield
        return
    from finetune.training.interruption import SIGNALS, Interruption

    with Interruption("the job is requeued", replaced=SIGNALS):
        yield


def with_metrics(record: JobRecord) -> JobRecord:
    """Add the metrics in a run's results; a command that does not train has none."""
    file = RunFolder(Path(record.run_dir)).results
    if not file.is_file():
        return record
    verify(file)
    metrics = from_plain(_Metrics, read_json(file, dict), name=str(file))
    return replace(
        record,
        val=_number(metrics.val, "acc"),
        test=_number(metrics.test, "acc"),
        monitored=_number(metrics.val, record.monitor.removeprefix("val/")),
    )


def _number(metrics: Mapping[str, Json], name: str) -> float | None:
    value = metrics.get(name)
    return value if isinstance(value, float | int) else None


def smaller_is_better(monitor: str, metrics: Mapping[str, Any]) -> bool:
    """Tell whether smaller values of a metric are better, by the same rule that a run uses to select its best epoch.

    Args:
        monitor: Name of the metric.
        metrics: Nodes of user-supplied metrics by name, as the user typed them.
    """
    from finetune.config.trust import objects_named
    from finetune.monitors import minimizes

    higher_is_better = None
    with suppress(Exception):  # a class that cannot be imported ends each job with its own message
        node = {"_target_": str(metrics[monitor.removeprefix("val/")]["_target_"])}
        higher_is_better = getattr(objects_named(node, trusted=True)[0], "higher_is_better", None)
    return minimizes(monitor, higher_is_better=higher_is_better)
