"""What a logger of Lightning keeps of a whole run: its hyperparameters, its test metrics, its files and how it ended.

Lightning hands a logger the numbers of one fit, and ends it after each fit; a run has a fit for each phase, and a test.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning.pytorch.loggers import Logger

from finetune.file_lock import lock_byte, open_lock_file
from finetune.plain import Json
from finetune.run_folder import JOBS

Status: TypeAlias = Literal["finished", "failed", "interrupted"]
Hyperparameters: TypeAlias = Mapping[str, bool | int | float | str | None]


@dataclass(frozen=True, kw_only=True)
class StoredFiles:
    """The files of a finished run that a store keeps with it.

    Args:
        bundle: Folder of the trained model.
        others: Single files, such as the report.
    """

    bundle: Path
    others: Sequence[Path]


class LoggerStore:
    """Keeps what any logger can keep: hyperparameters and numbers.

    Args:
        logger: The logger.
        sweep: Folder of the sweep that the run is a job of; None outside a sweep.
    """

    def __init__(self, logger: Any, *, sweep: Path | None = None) -> None:
        self.logger, self.sweep = logger, sweep

    def begin(self, hyperparameters: Hyperparameters) -> None:
        """Open the store, or open it again for a run that is resumed."""
        self.logger.log_hyperparams(dict(hyperparameters))

    def identity(self) -> str | None:
        """Return the id by which a resumed run finds itself in the store; None if it needs none."""
        return None

    def mark_running(self) -> None:
        """Mark the run as running again after Lightning has ended a fit."""

    def keep(self, files: StoredFiles) -> None:
        """Store files of the finished run; a store of numbers alone does not."""

    def end(self, status: Status) -> None:
        """Write how the run ended, and close the store."""
        self.logger.finalize("success" if status == "finished" else status)


class TensorBoardStore(LoggerStore):
    """Keeps hyperparameters and the status as a session of TensorBoard's HParams page."""

    def begin(self, hyperparameters: Hyperparameters) -> None:
        """Write the start of a session."""
        from torch.utils.tensorboard.summary import hparams

        values = {key: "null" if value is None else value for key, value in hyperparameters.items()}
        self.logger.hparams.update(values)  # which Lightning writes to hparams.yaml
        experiment, start, _ = hparams(  # type: ignore[no-untyped-call]  # torch has no types for it
            values, {"test/acc": 0.0, "test/f1_macro": 0.0, "test/loss": 0.0}
        )
        for summary in (experiment, start):
            self._writer().add_summary(summary)

    def end(self, status: Status) -> None:
        """Write the end of the session."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.plugins.hparams.api_pb2 import Status as SessionStatus
        from tensorboard.plugins.hparams.metadata import PLUGIN_NAME, SESSION_END_INFO_TAG
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        # torch's own summary of hyperparameters calls every session a success
        ended = SessionStatus.STATUS_SUCCESS if status == "finished" else SessionStatus.STATUS_FAILURE
        content = HParamsPluginData(session_end_info=SessionEndInfo(status=ended)).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
        metadata = SummaryMetadata(plugin_data=plugin)
        self._writer().add_summary(Summary(value=[Summary.Value(tag=SESSION_END_INFO_TAG, metadata=metadata)]))
        self.logger.experiment.add_text("status", status)
        super().end(status)

    def _writer(self) -> Any:
        # the public methods of SummaryWriter make hyperparameters a run of their own
        return self.logger.experiment._get_file_writer()


class MLflowStore(LoggerStore):
    """Keeps a run in MLflow; the jobs of a sweep are children of a run that stands for the sweep."""

    _STATUS: Mapping[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
    _PARENT = "mlflow.parentRunId"
    # MLflow's limit for one call
    _PARAMS_PER_CALL = 100

    def begin(self, hyperparameters: Hyperparameters) -> None:
        """Create the run, or open it again, and write the hyperparameters that it does not have yet."""
        from mlflow.entities import Param

        with self._sweep_locked():
            with _address_unchanged():
                client = self.logger.experiment
            run_id = self.logger.run_id
            if self.sweep is not None:
                parent = self._parent(client, str(self.sweep))
                client.update_run(parent, status="RUNNING")
                client.set_tag(run_id, self._PARENT, parent)
        client.update_run(run_id, status="RUNNING")
        # a parameter of MLflow cannot be changed, and Lightning's own method cuts each to 250 characters
        known = client.get_run(run_id).data.params
        params = [Param(key, str(value)) for key, value in hyperparameters.items() if key not in known]
        for at in range(0, len(params), self._PARAMS_PER_CALL):
            client.log_batch(run_id, params=params[at : at + self._PARAMS_PER_CALL])

    def identity(self) -> str | None:
        """Return the id of the run."""
        return str(self.logger.run_id)

    def mark_running(self) -> None:
        """Mark the run as running."""
        self.logger.experiment.update_run(self.logger.run_id, status="RUNNING")

    def keep(self, files: StoredFiles) -> None:
        """Store the bundle as ``model``, and the other files."""
        client, run_id = self.logger.experiment, self.logger.run_id
        client.log_artifacts(run_id, str(files.bundle), "model")
        for file in files.others:
            client.log_artifact(run_id, str(file))

    def end(self, status: Status) -> None:
        """End the run, and its sweep once no job of it is running."""
        client = self.logger.experiment
        client.set_terminated(self.logger.run_id, self._STATUS[status])
        if self.sweep is None:
            return
        with self._sweep_locked():
            parent, experiment = self._parent(client, str(self.sweep)), [self.logger.experiment_id]
            jobs = client.search_runs(experiment, f"tags.`{self._PARENT}` = '{parent}'", max_results=10_000)
            ended = {job.info.status for job in jobs}
            if "RUNNING" not in ended:
                client.set_terminated(parent, "FINISHED" if ended == {"FINISHED"} else "FAILED")

    def _parent(self, client: Any, sweep: str) -> str:
        """Return the id of the run that stands for the sweep; the first job creates it."""
        experiment, quoted = self.logger.experiment_id, sweep.replace("'", "\\'")
        if runs := client.search_runs([experiment], f"tags.`finetune.sweep` = '{quoted}'"):
            return str(runs[0].info.run_id)
        name = os.path.basename(sweep)
        return str(client.create_run(experiment, tags={"finetune.sweep": sweep}, run_name=name).info.run_id)

    @contextmanager
    def _sweep_locked(self) -> Iterator[None]:
        """Keep other jobs of the sweep out of the store, so that they do not create the same things twice."""
        if self.sweep is None:
            yield
            return
        descriptor = open_lock_file(self.sweep / JOBS / ".mlflow.lock")
        try:
            lock_byte(descriptor, 0, wait=True)
            yield
        finally:
            os.close(descriptor)


@contextmanager
def _address_unchanged() -> Iterator[None]:
    """Keep MLflow from making the store of this run the store of every later run of this process and of its children."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


class WandbStore(LoggerStore):
    """Keeps a run at Weights & Biases; the jobs of a sweep are a group."""

    def begin(self, hyperparameters: Hyperparameters) -> None:
        """Write the hyperparameters, which may have changed if the run is resumed."""
        self.logger.experiment.config.update(dict(hyperparameters), allow_val_change=True)

    def identity(self) -> str | None:
        """Return the id of the run."""
        return str(self.logger.experiment.id)

    def keep(self, files: StoredFiles) -> None:
        """Store the bundle and the other files as artifacts."""
        import wandb

        run = self.logger.experiment
        model = wandb.Artifact(f"model-{run.id}", type="model")
        model.add_dir(str(files.bundle))
        run.log_artifact(model)
        others = wandb.Artifact(f"report-{run.id}", type="report")
        for file in files.others:
            others.add_file(str(file))
        run.log_artifact(others)

    def end(self, status: Status) -> None:
        """Write the status, and finish the run; a non-zero exit code marks it as failed."""
        run = self.logger.experiment
        run.summary["status"] = status
        run.finish(exit_code=0 if status == "finished" else 1)


# class of Lightning -> how it keeps a run
_STORES: Mapping[str, type[LoggerStore]] = {
    "TensorBoardLogger": TensorBoardStore,
    "MLFlowLogger": MLflowStore,
    "WandbLogger": WandbStore,
}


def store_of(logger: Logger, *, sweep: Path | None = None) -> LoggerStore:
    """Return how a logger keeps a run, by its class or the class that it derives from."""
    names = [kind.__name__ for kind in type(logger).__mro__]
    kind = next((_STORES[name] for name in names if name in _STORES), LoggerStore)
    return kind(logger, sweep=sweep)


def flat(value: Json, key: str = "") -> dict[str, bool | int | float | str | None]:
    """Return the single values of a configuration by dotted key; a list of single values is one text.

    >>> flat({"lr": 0.1, "freeze": ["stem", "layer1"], "phases": [{"epochs": 2}], "kwargs": {}})
    {'lr': 0.1, 'freeze': '["stem", "layer1"]', 'phases.0.epochs': 2, 'kwargs': '{}'}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return {key: value}
    entries: list[tuple[str, Json]]
    if isinstance(value, Mapping):
        entries = list(value.items())
    else:
        entries = [(str(position), inner) for position, inner in enumerate(value)]
        if not any(isinstance(inner, list | tuple | Mapping) for _, inner in entries):
            return {key: json.dumps(list(value))}
    if not entries:
        return {key: "{}"}
    return {
        name: single
        for part, inner in entries
        for name, single in flat(inner, f"{key}.{part}" if key else part).items()
    }
