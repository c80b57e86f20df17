"""A run whose images lie in groups, resumed and tested again; and data without a training part, embedded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.cli import main
from finetune.commands.embed import data_set, split_words
from finetune.config import compose
from finetune.input_spec import InputSpec
from tests.conftest import TINY
from tests.data.folders import write_folder, write_image
from tests.runs import outcome, train_tiny

PATIENTS = 10


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on five patients of each class, four pictures each."""
    at = tmp_path_factory.mktemp("grouped")
    for patient in range(PATIENTS):
        for shot in range(4):
            write_image(at / "data" / "ab"[patient % 2] / f"p{patient}_{shot}.png", 10 * patient + shot)
    words = ["data=folder", f"data.root={at / 'data'}", "data.group_pattern='(p[0-9]+)_'", *TINY]
    short = ["schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=1", "optimizer=sgd"]
    return train_tiny([*words, *short], at / "run").run_dir


def groups_by_split(run: Path) -> dict[str, set[str]]:
    """Groups of each split, by the table that the run wrote."""
    lines = (run / "split.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    assert len(rows) == 4 * PATIENTS
    return {split: {row["group"] for row in rows if row["split"] == split} for split in ("train", "val", "test")}


def test_a_grouped_run_parts_no_group_when_it_is_resumed_and_when_it_is_evaluated(
    grouped: Path, tmp_path: Path
) -> None:
    splits = groups_by_split(grouped)
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == PATIENTS
    assert all(splits.values())
    resumed = tmp_path / "resumed"
    shutil.copytree(grouped, resumed)
    for name in ("results.json", "final.safetensors", "phases/1-all/result.json", "phases/1-all/last.ckpt"):
        (resumed / name).unlink()
    assert main(["resume", str(resumed)]) == 0
    assert groups_by_split(resumed) == splits
    assert outcome(resumed) == outcome(grouped)
    output = tmp_path / "metrics.json"
    assert main(["evaluate", str(grouped), "--output", str(output)]) == 0
    tested = json.loads((grouped / "results.json").read_text())["test"]
    assert json.loads(output.read_text())["confusion"] == tested["confusion"]


def test_data_without_a_training_part_is_embedded_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "data", {"test/a": 3, "test/b": 3})
    words = ["backbone=resnet18", "data=folder", f"data.root={root}"]
    source, _ = data_set(compose(words), split_words(words), SimpleNamespace(spec=InputSpec()))  # type: ignore[arg-type]
    assert source.index.split_sizes() == {"train": 0, "val": 0, "test": 6}
    assert (
        "warning: every class needs a training image. Only in val or test: a, b. Embedding it anyway"
        in capsys.readouterr().out
    )
