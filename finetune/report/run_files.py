"""A finished run as a report reads it: from its files alone."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from finetune.errors import UserError
from finetune.files import EVALUATION

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run left behind.

    Args:
        run_dir: Its folder.
        results: ``results.json``.
        plan: ``plan.json``.
        epochs: ``metrics.csv``, numbers as such and empty cells as None.
        paths: Of the test images, in the order of the evaluation's rows.
        config: ``config.yaml``.
        evaluation: ``evaluation.safetensors`` by split and name; empty where the run has none.
    """

    run_dir: Path
    results: dict[str, Any]
    plan: list[dict[str, Any]]
    epochs: list[Row]
    paths: list[str]
    config: str
    evaluation: dict[str, dict[str, npt.NDArray[Any]]]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        return list(self.results["data"]["classes"])

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes."""
        return "map" in self.results["test"]

    @property
    def stages(self) -> list[str]:
        """Stages of the network from the input to the head."""
        return list(self.plan[0]["stages"])

    def column(self, name: str) -> list[float | None]:
        """A quantity over all epochs."""
        return [row.get(name) for row in self.epochs]

    def weights(self) -> list[Path]:
        """The weights before each phase and after the last; empty where files of phases have been deleted."""
        starts = [self.run_dir / "phases" / f"{n}-{p['name']}" / "start.safetensors" for n, p in enumerate(self.plan)]
        files = [*starts, self.run_dir / "final.safetensors"]
        return files if all(path.is_file() for path in files) else []


def check_run(run: str | Path) -> Path:
    """The folder of a finished run; nothing heavy is imported to tell.

    Raises:
        UserError: It is none, or has not finished.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"RUN='{run}': no such folder.")
    if (folder / "results.json").is_file():
        return folder
    if (folder / "model.json").is_file():
        raise UserError(
            f"RUN='{run}': a bundle, which does not say how it was trained. A report needs the run's own folder."
        )
    if (folder / "config.yaml").is_file():
        raise UserError(f"RUN='{run}': this run has not finished. Go on with: finetune resume {run}")
    raise UserError(f"RUN='{run}': not a run folder. It has no results.json.")


def read_run(run: str | Path) -> RunFiles:
    """Read what a report is made of.

    Raises:
        UserError: The folder is no finished run, or a file of it is missing or damaged.
    """
    folder = check_run(run)
    results = _json(folder / "results.json", dict)
    missing = {"test", "val", "phases", "seconds", "data"} - set(results)
    if missing:
        raise UserError(f"{folder / 'results.json'}: damaged. Missing: {', '.join(sorted(missing))}.")
    paths = [row["path"] for row in _table(folder / "predictions.csv")]
    evaluation = _evaluation(folder / EVALUATION)
    if evaluation and len(evaluation["test"]["rows"]) != len(paths):
        raise UserError(f"{folder / EVALUATION}: holds other test images than predictions.csv.")
    return RunFiles(
        run_dir=folder,
        results=results,
        plan=_json(folder / "plan.json", list),
        epochs=[{name: _number(cell) for name, cell in row.items()} for row in _table(folder / "metrics.csv")],
        paths=paths,
        config=_text(folder / "config.yaml"),
        evaluation=evaluation,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read. {error}") from error


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged. {error}") from error
    if not isinstance(value, kind) or not value:
        raise UserError(f"{path}: damaged. It holds no {kind.__name__} with anything in it.")
    return value


def _table(path: Path) -> Sequence[dict[str, str]]:
    # a file name may hold a line break
    return list(csv.DictReader(io.StringIO(_text(path), newline="")))


def _number(cell: str) -> Any:
    """A cell of metrics.csv.

    >>> _number("0.5"), _number(""), _number("head")
    (0.5, None, 'head')
    """
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _evaluation(path: Path) -> dict[str, dict[str, npt.NDArray[Any]]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        return {}
    try:
        loaded = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged. {error}") from error
    found: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name, array in loaded.items():
        split, _, what = name.partition("/")
        found.setdefault(split, {})[what] = array
    return found
