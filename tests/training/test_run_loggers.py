"""What TensorBoard, MLflow and Weights & Biases hold of a run, read back by their own clients."""

import csv
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune.build.loggers import build_loggers
from finetune.config import compose
from finetune.errors import Interrupted, RunError
from finetune.runners.train import train
from finetune.training.run_loggers import RunLoggers
from tests.conftest import TINY

# raised by SQLAlchemy 2.1 while MLflow 3.17 defines its tables
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy", "ignore::ResourceWarning")


@dataclass
class Logged:
    """A run and where it was logged."""

    run_dir: Path
    results: dict[str, Any]
    rows: list[dict[str, str]]


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # neither client may contact anything
        for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "WANDB_SILENT"):
            patch.setenv(name, "true")
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


def words(pets: Path, logger: str) -> list[str]:
    return [
        *("data=folder", f"data.root={pets}", *TINY, "schedule=head_then_all", f"logger={logger}"),
        *("schedule.phases.0.epochs=1", "schedule.phases.1.epochs=2"),
    ]


@pytest.fixture(scope="module")
def logged(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    run_dir = tmp_path_factory.mktemp("logged runs") / "a run"
    train(compose([*words(pets, "[tensorboard,mlflow,wandb]"), "report=true", f"run_dir={run_dir}"]))
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    return Logged(run_dir, json.loads((run_dir / "results.json").read_text()), rows)


def mlflow_runs(folder: Path) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("finetune")
    return client, list(client.search_runs([experiment.experiment_id]))


def mlflow_run(logged: Logged) -> tuple[Any, Any]:
    client, runs = mlflow_runs(logged.run_dir.parent)
    (run,) = (run for run in runs if run.info.run_name == "a run")
    return client, run


def wandb_records(run_dir: Path) -> list[Any]:
    """Read the store of an offline run with the client's own protocol; the file is a log in LevelDB's format."""
    from wandb.proto import wandb_internal_pb2

    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    data, position, block, records, record = file.read_bytes(), 7, 32768, [], b""
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return records


def test_mlflow_works_as_installed_and_holds_the_run_by_name_and_finished(logged: Logged) -> None:
    _, run = mlflow_run(logged)
    assert (run.info.run_name, run.info.status) == ("a run", "FINISHED")


def test_mlflow_holds_every_setting_and_the_numbers_of_the_files(logged: Logged) -> None:
    client, run = mlflow_run(logged)
    assert run.data.params["schedule.phases.1.epochs"] == "2"
    assert run.data.params["backbone.name"] == logged.results["backbone"]["name"]
    assert not any(key.startswith("logger") for key in run.data.params)
    for name in ("acc", "f1_macro", "loss", "ece"):
        assert run.data.metrics[f"test/{name}"] == logged.results["test"][name]
    for name in ("val/acc", "val/loss", "train/loss"):
        history = client.get_metric_history(run.info.run_id, name)
        expected = [(int(row["step"]), float(row[name])) for row in logged.rows if row[name]]
        assert sorted((metric.step, metric.value) for metric in history) == expected


def test_mlflow_holds_the_bundle_and_the_report(logged: Logged) -> None:
    client, run = mlflow_run(logged)
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"model", "report.html", "results.json", "config.yaml"} <= names
    weights = Path(client.download_artifacts(run.info.run_id, "model/model.safetensors"))
    assert weights.read_bytes() == (logged.run_dir / "model/model.safetensors").read_bytes()


def test_wandb_holds_name_settings_numbers_artifacts_and_the_exit_status(logged: Logged) -> None:
    records = wandb_records(logged.run_dir)
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert runs[0].display_name == "a run"
    config = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.WhichOneof("record_type") in ("config", "run")
        for item in (record.config if record.HasField("config") else record.run.config).update
    }
    assert config["schedule.phases.1.epochs"] == 2
    history = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    losses = [float(row["val/loss"]) for row in logged.rows]
    assert [row["val/loss"] for row in history if "val/loss" in row] == losses
    (test,) = (row for row in history if "test/acc" in row)
    assert {name: test[f"test/{name}"] for name in ("acc", "f1_macro", "loss")} == {
        name: logged.results["test"][name] for name in ("acc", "f1_macro", "loss")
    }
    artifacts = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    files = {artifact.type: {entry.path for entry in artifact.manifest.contents} for artifact in artifacts}
    assert "model.safetensors" in files["model"]
    assert {"report.html", "results.json"} <= files["report"]
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [0]


def test_wandb_holds_the_exit_status_of_a_run_that_failed(tmp_path: Path) -> None:
    run_dir = tmp_path / "failed"
    run_dir.mkdir()
    loggers = build_loggers(compose(["data=digits", "logger=wandb"]), run_dir, trusted=True)
    with pytest.raises(RunError), loggers.recording({"lr": 0.1}):
        raise RunError("the loss became NaN")
    records = wandb_records(run_dir)
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [1]


@pytest.mark.parametrize("typed", [None, "false"])
def test_mlflow_does_not_report_its_use_unless_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str | None
) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    if typed is not None:
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", typed)
    build_loggers(compose(["data=digits", "logger=mlflow"]), tmp_path, trusted=True)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == (typed or "true")


def test_tensorboard_holds_settings_numbers_and_a_session_that_succeeded(logged: Logged) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.plugins.hparams.api_pb2 import Status

    events = EventAccumulator(str(logged.run_dir / "tensorboard"))
    events.Reload()
    losses = [float(row["val/loss"]) for row in logged.rows]
    # TensorBoard keeps four bytes of a number
    assert [event.value for event in events.Scalars("val/loss")] == pytest.approx(losses, rel=1e-7)
    for name in ("acc", "f1_macro", "loss"):
        (event,) = events.Scalars(f"test/{name}")
        assert event.value == pytest.approx(logged.results["test"][name], rel=1e-7)
    sessions = {
        name: plugin_data_pb2.HParamsPluginData.FromString(content)
        for name, content in events.PluginTagToContent("hparams").items()
    }
    settings = sessions["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["schedule.phases.1.epochs"].number_value == 2
    assert sessions["_hparams_/session_end_info"].session_end_info.status == Status.STATUS_SUCCESS


def recorded(run_dir: Path) -> RunLoggers:
    """The loggers of a run whose work is a block of the test."""
    run_dir.mkdir(parents=True)
    return build_loggers(compose(["data=digits", "logger=mlflow"]), run_dir, trusted=True)


def test_runs_that_fail_or_are_interrupted_are_marked_and_a_resumed_one_goes_on_in_its_place(logged: Logged) -> None:
    folder = logged.run_dir.parent
    with pytest.raises(RunError), recorded(folder / "failed").recording({"lr": 0.1}):
        raise RunError("the loss became NaN")
    with pytest.raises(Interrupted), recorded(folder / "stopped").recording({"lr": 0.1}):
        raise Interrupted("stopped", 15)
    status = {run.info.run_name: run.info.status for run in mlflow_runs(folder)[1]}
    assert (status["failed"], status["stopped"]) == ("FAILED", "KILLED")
    again = build_loggers(compose(["data=digits", "logger=mlflow"]), folder / "stopped", trusted=True)
    with again.recording({"lr": 0.1, "data.num_workers": 4}):
        assert [run.info.status for run in mlflow_runs(folder)[1] if run.info.run_name == "stopped"] == ["RUNNING"]
    (stopped,) = (run for run in mlflow_runs(folder)[1] if run.info.run_name == "stopped")
    assert stopped.info.status == "FINISHED"
    assert stopped.data.params == {"lr": "0.1", "data.num_workers": "4"}


def test_jobs_of_a_sweep_are_children_of_one_run_that_ends_with_the_last_of_them(logged: Logged) -> None:
    folder = logged.run_dir.parent
    (folder / "sweep/jobs").mkdir(parents=True)
    # a setting that MLflow and Lightning would cut is stored whole
    text = "x" * 3000
    first, second = (recorded(folder / "sweep" / str(job)) for job in range(2))
    with first.recording({"data.exclude": text}), second.recording({"data.exclude": text}):
        pass
    runs = {run.info.run_name: run for run in mlflow_runs(folder)[1]}
    jobs = [runs[f"sweep/{job}"] for job in range(2)]
    assert [run.info.status for run in (runs["sweep"], *jobs)] == ["FINISHED"] * 3
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {runs["sweep"].info.run_id}
    assert jobs[0].data.params == {"data.exclude": text}
