"""The documented fields are the fields that a run writes, no more and no fewer."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.errors import UserError
from finetune.file_schema import MODEL, PREDICTIONS, RESULTS, check_fields, leaves
from tests.runs import fields_of_a_tiny_run, train_tiny


@pytest.fixture(scope="module")
def run_dir(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import TINY

    words = ["data=folder", f"data.root={pets}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    return train_tiny(words, tmp_path_factory.mktemp("files") / "run").run_dir


@pytest.mark.parametrize(("file", "fields"), [("results.json", RESULTS), ("model/model.json", MODEL)])
def test_a_run_writes_exactly_the_documented_fields(file: str, fields: dict[str, object], run_dir: Path) -> None:
    values = json.loads((run_dir / file).read_text())
    check_fields(values, fields, name=file)
    assert fields_of_a_tiny_run(fields) <= {path for path, _ in leaves(values)}


def test_a_run_of_very_many_classes_writes_the_cells_of_its_confusion_matrix(
    run_dir: Path, words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.metrics.MOST_IN_MATRIX", 2)
    more = train_tiny(words("schedule=frozen", "schedule.phases.0.epochs=1"), tmp_path / "run").run_dir
    few, many = (json.loads((folder / "results.json").read_text()) for folder in (run_dir, more))
    check_fields(many, RESULTS, name="results.json")
    for split in ("val", "test"):
        matrix = few[split].pop("confusion")
        cells = many[split].pop("confusion_cells")
        assert cells == [[i, j, n] for i, row in enumerate(matrix) for j, n in enumerate(row) if n]
        assert few[split] == many[split]
    # what people read is the same
    assert (run_dir / "model/README.md").read_text() == (more / "model/README.md").read_text()
    assert main(["report", str(more)]) == 0
    page = (more / "report.html").read_text()
    assert "Confusion matrix" in page


def test_the_table_of_predictions_has_the_documented_columns(run_dir: Path) -> None:
    with (run_dir / "predictions.csv").open() as file:
        assert next(csv.reader(file)) == list(PREDICTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("seed"), "missing field seed"),
        (lambda v: v.update(extra=1), "unknown field extra"),
        (lambda v: v["test"].update(acc="high"), "test.acc is a str"),
        (lambda v: v["phases"][0].update(steps=1.5), r"phases\[\].steps is a float"),
    ],
)
def test_other_fields_are_refused_by_name(
    change: Callable[[dict[str, dict[str, object]]], object], message: str, run_dir: Path
) -> None:
    values = json.loads((run_dir / "results.json").read_text())
    change(values)
    with pytest.raises(UserError, match=message):
        check_fields(values, RESULTS, name="results.json")
