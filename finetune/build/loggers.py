"""Builds the loggers of a run: named after it, each in the store where a resumed run finds itself again."""

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config.schema import Config
from finetune.config.trust import instantiate
from finetune.distributed import is_rank_zero
from finetune.plain import from_plain
from finetune.run_folder import JOBS, RunFolder
from finetune.safe_files import read_json

if TYPE_CHECKING:
    from finetune.training.run_loggers import RunLoggers


@dataclass(frozen=True)
class _Ids:
    """Ids of the run in the stores, by the name of the logger."""

    ids: Mapping[str, str]


def build_loggers(config: Config, run_dir: Path, *, trusted: bool, objects: Sequence[Any] = ()) -> "RunLoggers":
    """Build the loggers of a run.

    Args:
        config: Configuration of the run.
        run_dir: Run folder.
        trusted: Whether the user typed the configuration, or trusts its run.
        objects: Loggers that came from Python as objects.

    Raises:
        UserError: A logger may not be built, or refuses its arguments.
    """
    from finetune.training.run_loggers import RunLoggers

    sweep = run_dir.absolute().parent if (run_dir.absolute().parent / JOBS).is_dir() else None
    file = RunFolder(run_dir).logger_ids
    # read for the loggers alone that only a trusted run names
    stored = any(_class(node) in _ARGUMENTS for node in config.logger.values()) and os.path.lexists(file)
    ids = from_plain(_Ids, {"ids": read_json(file, dict)}, name=str(file)).ids if stored and is_rank_zero() else {}
    built = {
        name: _build(node, _own_arguments(node, run_dir, sweep, ids.get(name)), run_dir, trusted=trusted)
        for name, node in config.logger.items()
    }
    built |= {f"object {position}": logger for position, logger in enumerate(objects)}
    return RunLoggers(loggers=built, ids=file, sweep=sweep)


def _build(node: Mapping[str, Any], own: Mapping[str, str | None], run_dir: Path, *, trusted: bool) -> Any:
    """Build a logger; what the configuration gives takes precedence over the run's own arguments."""
    given = {key: value for key, value in node.items() if value is not None}
    extra = {key: value for key, value in own.items() if key not in given}
    return instantiate(given, trusted=trusted, run_dir=run_dir, **extra)


def _own_arguments(
    node: Mapping[str, Any], run_dir: Path, sweep: Path | None, identity: str | None
) -> Mapping[str, str | None]:
    """Return the arguments that a logger of this class gets from its run."""
    arguments = _ARGUMENTS.get(_class(node))
    return {} if arguments is None else arguments(run_dir, sweep, identity)


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_")).rpartition(".")[2]


def _mlflow(run_dir: Path, sweep: Path | None, identity: str | None) -> Mapping[str, str | None]:
    """Return what MLflow needs: beside the run folders, a database of all runs and a folder of their files."""
    # MLflow reports its use to its makers unless told not to; a run contacts only what its user named
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = (sweep or run_dir.absolute()).parent
    server = os.environ.get("MLFLOW_TRACKING_URI")
    local = {
        "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
        "artifact_location": (folder / "mlartifacts").as_uri(),
    }
    return {"run_name": _name(run_dir, sweep), "run_id": identity, **({"tracking_uri": server} if server else local)}


def _wandb(run_dir: Path, sweep: Path | None, identity: str | None) -> Mapping[str, str | None]:
    """Return what Weights & Biases needs: an id that a resumed run has too, and the sweep as a group."""
    group = None if sweep is None else sweep.name
    return {"name": _name(run_dir, sweep), "id": identity or secrets.token_hex(4), "resume": "allow", "group": group}


def _name(run_dir: Path, sweep: Path | None) -> str:
    name = run_dir.absolute().name
    return name if sweep is None else f"{sweep.name}/{name}"


# class of Lightning -> arguments that it gets, unless the configuration gives them
_ARGUMENTS: Mapping[str, Callable[[Path, Path | None, str | None], Mapping[str, str | None]]] = {
    "MLFlowLogger": _mlflow,
    "WandbLogger": _wandb,
}
