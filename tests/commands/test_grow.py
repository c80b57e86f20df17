"""``finetune grow``: new classes join a trained run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from finetune.cli import main
from finetune.config import check_overrides
from finetune.errors import UserError
from finetune.runners.grow import grown_config, read_renames
from tests.conftest import TINY, make_pets, write_images
from tests.runs import outcome, train_tiny

SHORT = ("schedule=frozen", "schedule.phases.0.epochs=1", "data.num_workers=0", "data.batch_size=8", "logger=none")
GROWN = (*SHORT, "report=false", "trainer.precision=32-true", "keep=all")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of three classes, its data, two new classes, and all five together."""
    root = tmp_path_factory.mktemp("grow")
    make_pets(root / "pets")
    words = ["data=folder", f"data.root={root / 'pets'}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    train_tiny([*words, "seed=3"], root / "run")
    for number, name in enumerate(("0 ant", "5 bee")):
        write_images(root / "new" / name, count=12, hue=(150 + 60 * number, 30, 150), seed=20 + number)
    for folder in ("pets", "new"):
        shutil.copytree(root / folder, root / "all", dirs_exist_ok=True)
    for image in sorted((root / "all").rglob("*.png")):
        image.rename(image.with_name(f"renamed {image.name}"))
    return root


@pytest.fixture(scope="module")
def grown(place: Path) -> Path:
    """The run grown on old and new classes."""
    assert main(["grow", str(place / "run"), str(place / "all"), *GROWN, f"run_dir={place / 'grown'}"]) == 0
    return place / "grown"


def results_of(run: Path) -> dict[str, dict[str, object]]:
    values: dict[str, dict[str, object]] = json.loads((run / "results.json").read_text())
    return values


def test_the_grown_run_starts_with_the_old_network_and_rows_and_keeps_the_split(place: Path, grown: Path) -> None:
    old, start = load_file(place / "run/model/model.safetensors"), load_file(grown / "phases/0-head/start.safetensors")
    head = {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(old[name], start[name]) for name in old.keys() - head)
    assert all(torch.equal(old[name], start[name][:3]) for name in head)
    assert start["head.fc.weight"].shape[0] == 5
    assert results_of(grown)["data"]["classes"] == ["1 cat", "2 dog", "10 owl", "0 ant", "5 bee"]
    splits = []
    for run in (place / "run", grown):
        rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()[1:]]
        splits.append({row[-1]: row[2] for row in rows})
    assert splits[0].items() <= splits[1].items()
    assert len(splits[1]) == 3 * 16 + 2 * 12


def test_old_and_new_accuracy_stand_side_by_side(place: Path, grown: Path) -> None:
    growth = results_of(grown)["growth"]
    assert growth["old_classes"] == ["1 cat", "2 dog", "10 owl"]
    assert growth["before"] == pytest.approx(results_of(place / "run")["test"]["acc"])
    assert (growth["rehearsed"], growth["old_images"], growth["new_images"]) == (True, 6, 4)
    assert growth["after"] <= growth["among_old"]  # type: ignore[operator]
    right = growth["after"] * growth["old_images"] + growth["new"] * growth["new_images"]  # type: ignore[operator]
    assert right / 10 == pytest.approx(results_of(grown)["test"]["acc"])


def test_a_stopped_growth_is_resumed_to_the_same_end(grown: Path) -> None:
    whole = outcome(grown)
    for name in ("results.json", "phases/0-head/result.json", "final.safetensors"):
        (grown / name).unlink()
    assert main(["resume", str(grown)]) == 0
    assert outcome(grown) == whole


def test_without_old_images_the_user_is_warned_and_the_first_runs_test_images_show_what_is_forgotten(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["grow", str(place / "run"), str(place / "new"), *GROWN, "schedule=head_then_all"]
    words += ["schedule.phases.0.solver=auto", "schedule.phases.1.epochs=1", f"run_dir={tmp_path / 'alone'}"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "3 of the 3 old classes have no training image and may be forgotten" in said.err
    assert "phase 1 of 2: head, training head" in said.out
    growth = results_of(tmp_path / "alone")["growth"]
    assert (growth["rehearsed"], growth["old_images"], growth["new_images"]) == (False, 6, 4)
    assert growth["before"] == pytest.approx(results_of(place / "run")["test"]["acc"])
    assert f"growth: 3 old classes: accuracy {growth['before']:.4f} before, {growth['after']:.4f} now (" in said.out


def config_of(place: Path, *words: str, rename: str | None = None, run: str = "run") -> object:
    table = None
    if rename is not None:
        table = place / "rename.csv"
        table.write_text(rename)
    return grown_config(str(place / run), check_overrides([*words]), rename=table)


def test_classes_are_renamed_and_merged_by_a_table(place: Path, tmp_path: Path) -> None:
    words = ["grow", str(place / "run"), str(place / "all"), *GROWN, f"run_dir={tmp_path / 'merged'}"]
    (tmp_path / "t.csv").write_text("old,new\n1 cat,mammal\n2 dog,mammal\n")
    assert main([*words, "--rename", str(tmp_path / "t.csv")]) == 0
    assert results_of(tmp_path / "merged")["data"]["classes"] == ["mammal", "10 owl", "0 ant", "5 bee"]
    old, start = (
        load_file(file)["head.fc.weight"]
        for file in (place / "run/model/model.safetensors", tmp_path / "merged/phases/0-head/start.safetensors")
    )
    torch.testing.assert_close(start[0], old[:2].mean(0))
    assert torch.equal(start[1], old[2])
    assert yaml.safe_load((tmp_path / "merged/config.yaml").read_text())["data"]["rename"] == {
        "1 cat": "mammal",
        "2 dog": "mammal",
    }


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("old,new\ncow,bull\n", "'cow' is not a class of the run"),
        ("old,new\n1 cat,a\n1 cat,b\n", "needs one new name"),
        ("old,new\n1 cat,2 dog\n2 dog,c\n", "an old and a new name at once"),
        ("from,to\n1 cat,a\n", "needs one column 'old'"),
    ],
)
def test_a_wrong_table_of_names_is_refused(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        read_renames(tmp_path / "t.csv", classes=["1 cat", "2 dog"])


def test_what_cannot_grow_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the data has no class that the run does not know"):
        config_of(place, "data=folder", f"data.root={place / 'pets'}")
    with pytest.raises(UserError, match=r"weights=none: finetune grow takes it from"):
        config_of(place, f"data.root={place / 'all'}", "weights=none")
    with pytest.raises(UserError, match="needs the data to grow by"):
        config_of(place, "seed=1")
    with pytest.raises(UserError, match="a bundle does not record the split"):
        config_of(place, str(place / "all"), run="run/model")
    with pytest.raises(UserError, match="solves the head from images of every class"):
        config_of(place, str(place / "new"), "schedule.solver=lbfgs")
    for key, value, message in (
        ("multi_label", True, "only a model of one label grows"),
        ("head", {"name": "mlp", "num_features": 8, "num_classes": 3}, "only a linear head takes new classes"),
    ):
        shutil.copytree(place / "run", tmp_path / key)
        model = tmp_path / key / "model/model.json"
        values = json.loads(model.read_text())
        values["model"][key] = value
        values.pop("sha256")
        model.write_text(json.dumps(values))
        with pytest.raises(UserError, match=message):
            grown_config(str(tmp_path / key), check_overrides([str(place / "all")]))
    (place / "run" / "model").rename(tmp_path / "model")
    with pytest.raises(UserError, match="has not finished"):
        config_of(place, str(place / "all"))
    (tmp_path / "model").rename(place / "run" / "model")
