"""Testing a trained run on its own data and on other data."""

import json
import shutil
from pathlib import Path

import pytest

from finetune.cli import main
from tests.runs import train_tiny


@pytest.fixture(scope="module")
def run_dir(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import TINY

    words = [
        "data=folder",
        f"data.root={pets}",
        *TINY,
        "schedule=frozen",
        "schedule.phases.0.epochs=2",
        "schedule.lr=0.05",
    ]
    return train_tiny(words, tmp_path_factory.mktemp("evaluate") / "run").run_dir


def evaluated(*words: str, tmp_path: Path) -> dict[str, object]:
    output = tmp_path / "metrics.json"
    assert main(["evaluate", *words, "--output", str(output)]) == 0
    metrics: dict[str, object] = json.loads(output.read_text())
    return metrics


def test_its_own_test_split_gives_the_metrics_of_the_run(run_dir: Path, tmp_path: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    metrics = evaluated(str(run_dir), tmp_path=tmp_path)
    assert metrics["confusion"] == results["test"]["confusion"]
    for name in ("acc", "f1_macro", "loss", "ece", "recall"):
        assert metrics[name] == pytest.approx(results["test"][name], abs=1e-6), name


def test_another_folder_is_all_test_and_classes_are_aligned_by_name(run_dir: Path, pets: Path, tmp_path: Path) -> None:
    other = tmp_path / "others"
    shutil.copytree(pets / "10 owl", other / "10 owl")
    metrics = evaluated(str(run_dir), "data=folder", f"data.root={other}", tmp_path=tmp_path)
    assert metrics["images"] == 16
    assert metrics["missing_classes"] == ["1 cat", "2 dog"]
    confusion = metrics["confusion"]
    assert isinstance(confusion, list)
    assert [sum(row) for row in confusion] == [0, 0, 16]


def test_a_class_that_the_model_does_not_know_is_named(
    run_dir: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pets / "10 owl", tmp_path / "others/fox")
    assert main(["evaluate", str(run_dir), "data=folder", f"data.root={tmp_path / 'others'}"]) == 2
    assert "classes that the model was not trained on: fox" in capsys.readouterr().err


def test_a_bundle_alone_needs_to_be_told_its_data(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir / "model")]) == 2
    assert "Give data=folder data.root=DIR" in capsys.readouterr().err


def test_a_table_without_splits_is_all_tested(run_dir: Path, pets: Path, tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted(pets.glob("*/*"))[:10]]
    table.write_text("\n".join(["path,label", *rows]))
    words = ["data=manifest", f"data.path={table}"]
    assert evaluated(str(run_dir), *words, tmp_path=tmp_path)["images"] == 10
    table.write_text("\n".join(["path,label,split", *(f"{row},validation" for row in rows)]))
    assert evaluated(str(run_dir), *words, tmp_path=tmp_path)["images"] == 10


def test_settings_that_name_no_other_data_leave_the_runs_own_test_split(run_dir: Path, tmp_path: Path) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    metrics = evaluated(str(run_dir), "data.num_workers=0", tmp_path=tmp_path)
    assert metrics["confusion"] == results["test"]["confusion"]
