"""A finished run, read from its files alone, for the report."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from finetune.checksums import verify
from finetune.counted import counted
from finetune.errors import UserError, shortened, type_in_words
from finetune.file_schema import RESULTS, RESULTS_MULTI_LABEL, THRESHOLD, check_fields
from finetune.near_paths import did_you_mean_path
from finetune.plain import Json, from_plain
from finetune.results import Results
from finetune.resume_command import resume_command
from finetune.run_folder import RunFolder
from finetune.run_names import CONFIG
from finetune.safe_files import LARGEST_JSON, inside, load_tensors, parse_json, read_text

# a cell of metrics.csv; None if empty
Cell = float | str | None
Kind = TypeVar("Kind")
# axes of the tensors of evaluation.safetensors; targets have one, or two for several labels
_AXES = {"rows": 1, "probabilities": 2, "embedded_rows": 1, "embeddings": 2}
_REMEDY = "Restore it from a backup, if you have one; else train again."


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """The part of an entry of ``plan.json`` that a report needs.

    Args:
        name: Name of the phase.
        train: Stages that train.
        trainable: Parameters that train.
        total: Parameters of the network.
        stages: What happens to each stage, from the input to the head.
    """

    name: str
    train: tuple[str, ...]
    trainable: int
    total: int
    stages: Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of a finished run.

    Args:
        run_dir: Run folder.
        results: Contents of ``results.json``.
        plan: Contents of ``plan.json``.
        epochs: Rows of ``metrics.csv``, numbers as floats and empty cells as None.
        paths: Paths of the test images, in the order of the evaluation's rows.
        config: Text of ``config.yaml``.
        evaluation: Arrays of ``evaluation.safetensors`` by split and name; empty if the run has no such file.
    """

    run_dir: Path
    results: Results
    plan: list[PlanEntry]
    epochs: list[Mapping[str, Cell]]
    paths: list[str]
    config: str
    evaluation: dict[str, dict[str, npt.NDArray[Any]]]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the logits."""
        return list(self.results.data.classes)

    @property
    def multi_label(self) -> bool:
        """Tell whether an image may show several classes."""
        return self.results.test.map is not None

    @property
    def thresholds(self) -> tuple[float, ...]:
        """With several labels, the probability above which each class is predicted."""
        fitted = self.results.thresholds
        return (THRESHOLD,) * len(self.classes) if fitted is None else fitted.values

    @property
    def stages(self) -> list[str]:
        """Stages of the network from the input to the head."""
        return list(self.plan[0].stages)

    def column(self, name: str) -> list[Cell]:
        """Return one quantity for all epochs."""
        return [row.get(name) for row in self.epochs]

    def weights(self) -> list[Path]:
        """Return the weight files before each phase and after the last; empty if files of a phase have been deleted."""
        folder = RunFolder(self.run_dir)
        starts = [folder.phase(number, phase.name).start for number, phase in enumerate(self.plan)]
        files = [*starts, folder.final_weights]
        return files if all(path.is_file() for path in files) else []


def check_run(run: str | Path) -> Path:
    """Return the folder of a finished run, without importing anything heavy.

    Raises:
        UserError: The folder is not a run, or the run has not finished.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"RUN='{run}': no such folder.{did_you_mean_path(run, folders=True)}")
    # also if it is not a regular file, which opening it reports
    if os.path.lexists(RunFolder(folder).results):
        return folder
    if (folder / "model.json").is_file():
        raise UserError(
            f"RUN='{run}': a bundle, which does not record how it was trained. A report needs the run folder. Give that."
        )
    if (folder / CONFIG).is_file():
        raise UserError(f"RUN='{run}': this run has not finished. Continue with: {resume_command(run)}")
    raise UserError(f"RUN='{run}': not a run folder. It has no results.json.")


def read_run(run: str | Path) -> RunFiles:
    """Read the files that a report needs.

    Raises:
        UserError: The folder is not a finished run, or one of its files is missing or damaged.
    """
    folder = RunFolder(check_run(run))
    results = read_results(folder.results)
    predictions = read_table(folder.predictions, ("path",))
    evaluation = read_evaluation(folder.evaluation)
    if evaluation and len(evaluation["test"]["rows"]) != len(predictions):
        raise UserError(f"{folder.evaluation}: holds other test images than predictions.csv. {_REMEDY}")
    return RunFiles(
        run_dir=folder.path,
        results=results,
        plan=_plan(folder.plan),
        epochs=[
            {name: _number(cell) for name, cell in row.items()}
            for row in read_table(folder.metrics, ("phase", "epoch", "step"))
        ],
        paths=[row["path"] for row in predictions],
        config=_text(folder.config),
        evaluation=evaluation,
    )


def _text(path: Path) -> str:
    verify(path)
    return read_text(inside(path.parent, path.name), largest=LARGEST_JSON)


def _json(path: Path, kind: type[Kind]) -> Kind:
    value = parse_json(_text(path), kind, name=str(path), remedy=_REMEDY)
    if not value:
        raise UserError(f"{path}: damaged. It does not hold a {kind.__name__}, or an empty one. {_REMEDY}")
    return value


def _plan(path: Path) -> list[PlanEntry]:
    phases = _json(path, list)
    for phase in phases:
        if not isinstance(phase, dict):
            raise UserError(f"{path}: damaged. An entry is {type_in_words(phase)}, not a phase.")
    return [from_plain(PlanEntry, phase, name=str(path)) for phase in phases]


def read_results(path: Path) -> Results:
    """Read ``results.json``.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    name, values = str(path), _json(path, dict)
    results = from_plain(Results, values, name=name, remedy=_REMEDY)
    multi_label = results.test.map is not None
    check_fields(values, RESULTS_MULTI_LABEL if multi_label else RESULTS, name=name, of_any_version=True)
    classes = results.data.classes
    for split, metrics in (("test", results.test), ("val", results.val)):
        if len(metrics.recall) != len(classes):
            raise UserError(
                f"{name}: damaged. {split}.recall is not one number for each of {len(classes)} classes. {_REMEDY}"
            )
    if not classes or not results.phases:
        raise UserError(f"{name}: damaged. It has no classes or no phases. {_REMEDY}")
    return results


def read_table(path: Path, columns: Sequence[str]) -> Sequence[dict[str, str]]:
    """Read a CSV file of a run.

    Raises:
        UserError: It cannot be read, is damaged, or lacks a column.
    """
    # a file name may hold a line break
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}: damaged. It is not a table: {error}. {_REMEDY}") from error
    if not set(columns) <= set(reader.fieldnames or ()):
        raise UserError(f"{path}: damaged. It needs the columns {', '.join(columns)}. {_REMEDY}")
    # a row that is too long has extra cells under the key None; one that is too short has cells that are None
    wrong = next((number for number, row in enumerate(rows, 2) if None in row or None in row.values()), None)
    if wrong is not None:
        raise UserError(f"{path}: damaged. Row {wrong} and the first differ in their number of cells. {_REMEDY}")
    return rows


def _number(cell: str) -> Cell:
    """Parse a cell of metrics.csv.

    >>> _number("0.5"), _number(""), _number("head")
    (0.5, None, 'head')
    """
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def read_evaluation(path: Path) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Read ``evaluation.safetensors`` as arrays by split and name; empty if a run has no such file.

    Raises:
        UserError: It is damaged.
    """
    if not os.path.lexists(path):
        return {}
    verify(path)
    loaded = {name: tensor.numpy() for name, tensor in load_tensors(inside(path.parent, path.name)).items()}
    broken = [name for name, array in loaded.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if broken:
        raise UserError(f"{path}: damaged. It holds values that are not finite: {shortened(broken)}. {_REMEDY}")
    arrays: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name, array in loaded.items():
        split, _, what = name.partition("/")
        arrays.setdefault(split, {})[what] = array
    missing = [
        f"{split}/{what}"
        for split in ("test", "val")
        for what in ("rows", "targets", "probabilities")
        if what not in arrays.get(split, {})
    ]
    # both or neither: a split whose images have no map keeps no embeddings
    pair = {"embedded_rows", "embeddings"}
    missing += [
        f"{split}/{what}" for split in arrays if pair & set(arrays[split]) for what in sorted(pair - set(arrays[split]))
    ]
    if missing:
        raise UserError(f"{path}: damaged. It lacks {shortened(missing)}. {_REMEDY}")
    for split, tensors in arrays.items():
        for together in (("rows", "targets", "probabilities"), ("embedded_rows", "embeddings")):
            shapes = [tensors[what].shape for what in together if what in tensors]
            if len({shape[:1] for shape in shapes}) > 1 or () in shapes:
                raise UserError(f"{path}: damaged. The tensors of {split} belong to different images. {_REMEDY}")
        for what, axes in _AXES.items():
            if what in tensors and tensors[what].ndim != axes:
                raise UserError(
                    f"{path}: damaged. {split}/{what} has {counted(tensors[what].ndim, 'axis', 'axes')}, not {axes}. {_REMEDY}"
                )
    return arrays
