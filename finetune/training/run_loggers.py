"""The loggers of a run, from its start or resumption to its end: a logger failure never fails a finished run."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import Logger

from finetune.atomic_files import write_json
from finetune.distributed import is_rank_zero
from finetune.errors import UserError, first_line
from finetune.results import EpochRow, SplitMetrics
from finetune.training.logger_stores import Hyperparameters, LoggerStore, Status, StoredFiles, store_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunLoggers:
    """The loggers of one run.

    Args:
        loggers: Loggers of Lightning by the name of their setting.
        sweep: Folder of the sweep that the run is a job of; None outside a sweep.
        ids: File that keeps the run's ids in the stores, so that a resumed run continues there.
    """

    loggers: Mapping[str, Logger]
    ids: Path
    sweep: Path | None = None

    @property
    def all(self) -> list[Logger]:
        """Return the loggers, as a Trainer takes them."""
        return list(self.loggers.values())

    @contextmanager
    def recording(self, hyperparameters: Hyperparameters) -> Iterator[None]:
        """Open the stores, and record how the block ended: finished, failed or interrupted.

        Raises:
            UserError: A store cannot be opened.
        """
        if not is_rank_zero():
            yield
            return
        for name, store in self._stores():
            try:
                store.begin(hyperparameters)
            # any library may raise anything here; nothing has been trained yet
            except (Exception, SystemExit) as error:
                self._end("failed")
                raise UserError(f"logger.{name}: cannot be opened. {_first_line(error)} Or set logger=none.") from error
        if ids := {name: identity for name, store in self._stores() if (identity := store.identity()) is not None}:
            write_json(self.ids, ids)
        try:
            yield
        except Exception:
            self._end("failed")
            raise
        except BaseException:
            self._end("interrupted")
            raise
        self._end("finished")

    def finish(self, test: SplitMetrics, *, step: int, files: StoredFiles) -> None:
        """Log the test metrics of the final weights and store the files; an error here is logged and leaves the run intact."""
        if not is_rank_zero():
            return
        numbers = {f"test/{name}": value for name, value in test.scalars().items()}

        def write(store: LoggerStore) -> None:
            store.logger.log_metrics(numbers, step=step)
            store.keep(files)

        self._each(write, "could not be written")

    def _end(self, status: Status) -> None:
        self._each(lambda store: store.end(status), "could not be closed")

    def _each(self, use: Callable[[LoggerStore], None], failure: str) -> None:
        for name, store in self._stores():
            try:
                use(store)
            except Exception as error:
                log.warning("logger.%s: %s. %s The run itself is not affected.", name, failure, _first_line(error))

    def _stores(self) -> list[tuple[str, LoggerStore]]:
        return [(name, store_of(logger, sweep=self.sweep)) for name, logger in self.loggers.items()]


def log_row(loggers: Sequence[Logger], row: EpochRow) -> None:
    """Log an epoch's metrics to every logger."""
    numbers = {"epoch": row.epoch, "step": row.step, **row.values}
    for logger in loggers:
        logger.log_metrics(numbers, step=row.step)


def mark_running(loggers: Sequence[Logger]) -> None:
    """Mark the run as running again in its stores; Lightning ends it there after each fit."""
    if is_rank_zero():
        for logger in loggers:
            store_of(logger).mark_running()


def _first_line(error: BaseException) -> str:
    text = first_line(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."
