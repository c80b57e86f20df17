"""Testing a trained run on its own data and on other data."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.cli import main
from finetune.config import compose, to_yaml
from finetune.runners.run_data import data_config
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


def test_data_that_has_changed_is_not_split_anew_but_refused(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import TINY

    shutil.copytree(pets, data := tmp_path / "pets")
    words = ["data=folder", f"data.root={data}", *TINY, "schedule=probe"]
    trained = train_tiny(words, tmp_path / "run")
    run = str(trained.run_dir)
    shutil.copy(next((data / "2 dog").iterdir()), data / "2 dog" / "new.png")
    assert main(["evaluate", run]) == 2
    own = re.search(r"(data=manifest \S+ \S+),", capsys.readouterr().err)
    assert own is not None
    assert evaluated(run, *shlex.split(own[1]), tmp_path=tmp_path)["acc"] == pytest.approx(trained.results.test.acc)
    (data / "2 dog" / "new.png").unlink()
    next((data / "2 dog").iterdir()).unlink()
    assert main(["evaluate", run]) == 2
    said = capsys.readouterr().err
    assert evaluated(run, *shlex.split(own[1]), tmp_path=tmp_path)["images"] in (5, 6)
    assert "the data has changed since the run" in said
    assert "counts." in said
    assert evaluated(run, f"data={data}", tmp_path=tmp_path)["images"] == 47
    assert evaluated(run, "--split", "all", tmp_path=tmp_path)["images"] == 47


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
    assert "Give data=DIR" in capsys.readouterr().err


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


def test_a_floor_that_is_not_reached_ends_with_status_1_and_one_line(
    run_dir: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reached = json.loads((run_dir / "results.json").read_text())["test"]["acc"]
    assert main(["evaluate", str(run_dir), "--at-least", f"acc={reached}", "f1=0"]) == 0
    shutil.copytree(pets / "1 cat", tmp_path / "others/10 owl")
    words = [str(run_dir), "data=folder", f"data.root={tmp_path / 'others'}"]
    capsys.readouterr()
    assert main(["evaluate", *words, "--at-least", "acc=1", "f1=0.99"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--at-least: not reached on 16 images (all). acc 0" in line
    assert "f1_macro 0" in line


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("akk=0.9", "Metrics: acc, f1_macro, f1_micro, map"),
        ("loss=0.5", "not a metric of which more is better"),
        ("acc=95", "must be METRIC=NUMBER, a number from 0 to 1"),
        ("acc=nan", "must be METRIC=NUMBER"),
        ("acc", "must be METRIC=NUMBER"),
        ("data.root=x", "stand before --at-least"),
    ],
)
def test_a_floor_that_cannot_be_checked_is_refused_before_anything_is_tested(
    word: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path / "no run"), "--at-least", word]) == 2
    assert expected in capsys.readouterr().err


def test_a_floor_that_belongs_to_several_labels_is_refused_with_what_there_is(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_dir), "--at-least", "map=0.5"]) == 2
    assert "Metrics here: acc, f1_macro." in capsys.readouterr().err


def test_a_table_is_read_by_the_columns_of_the_runs_own_where_it_has_them(tmp_path: Path) -> None:
    run, table = tmp_path / "run", tmp_path / "new.csv"
    run.mkdir()
    own = ["data.path_column=file", "data.label_column=tags", "data.label_separator=;"]
    (run / "config.yaml").write_text(to_yaml(compose(["data=manifest", "data.path=old.csv", *own])))
    words = ["data=manifest", f"data.path={table}"]
    table.write_text("file,tags\na.png,x;y\n")
    data = data_config(str(run), words).data
    assert (data.path_column, data.label_column, data.label_separator) == ("file", "tags", ";")
    assert data_config(str(run), [*words, "data.label_column=file"]).data.label_column == "file"
    table.write_text("path,label\na.png,x\n")
    data = data_config(str(run), words).data
    assert (data.path_column, data.label_column, data.label_separator) == ("path", "label", None)


def test_the_share_of_images_like_the_training_images_tells_of_other_data(tmp_path: Path) -> None:
    # bright pictures to train on, and dark ones that come later
    random = np.random.default_rng(0)
    for name, level, count in (("bright/red", 220, 60), ("bright/blue", 160, 60), ("dark/red", 20, 12)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(level, level + 30, (32, 32, 3), dtype=np.uint8)).save(
                folder / f"{number}.png"
            )
    bright = tmp_path / "bright"
    run = finetune.fit(
        data=bright,
        weights="embedded",
        schedule="probe",
        size=32,
        run_dir=tmp_path / "run",
        overrides=["data.val_fraction=0.4", "data.test_fraction=0.2", "report=false", "logger=none"],
    )
    same, other = (finetune.evaluate(run, data) for data in (None, tmp_path / "dark"))
    assert run.results.unknown is not None
    assert same.known == pytest.approx(run.results.unknown.known["test"])
    assert other.known is not None
    assert other.known < 0.5 < same.known
