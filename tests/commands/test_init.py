"""``finetune init`` looks at the data and writes settings that compose and train, each with its reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from finetune.cli import main
from finetune.data.starting_settings import settings_of_table

Captured = pytest.CaptureFixture[str]


def grey_images(folder: Path, count: int, *, seed: int) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 4096, (count, 24, 30)).astype(np.uint16)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")


def test_what_it_writes_for_small_grey_imbalanced_images_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    grey_images(tmp_path / "plates/a", 60, seed=0)
    grey_images(tmp_path / "plates/b", 4, seed=1)
    assert main(["init", "plates"]) == 0
    written = (tmp_path / "plates.yaml").read_text()
    values = yaml.safe_load(written)
    assert values["data"] == {"root": str(tmp_path / "plates"), "batch_size": 4}
    assert values["input"] == {"size": 128}
    assert values["loss"] == {"class_weights": "balanced"}
    assert values["monitor"] == "val/f1_macro"
    # each has its reason above it
    lines = [line.strip() for line in written.splitlines()]
    for key in ("root:", "batch_size:", "size:", "class_weights:", "monitor:"):
        at = next(number for number, line in enumerate(lines) if line.startswith(key))
        assert lines[at - 1].startswith("# "), key
    assert "of more than 8 bits" in written
    assert "finetune plan --config-dir . --config-name plates" in capsys.readouterr().out

    tiny = ["backbone=resnet10t", "weights=none", "schedule=frozen", "epochs=1", "logger=none", "report=false"]
    assert main(["--config-dir", ".", "--config-name", "plates", *tiny, "data.num_workers=0", "run_dir=run"]) == 0
    used = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (used["input"]["channels"], used["data"]["batch_size"], used["monitor"]) == ("auto", 4, "val/f1_macro")
    assert (tmp_path / "run/results.json").is_file()

    assert main(["init", "plates"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"path": list("abcd"), "label": ["cat", "dog", "cat;dog", "cat"]}, {"data.label_separator": ";"}),
        ({"path": list("abcd"), "label": ["cat", "dog, big", "cat", "owl"]}, {}),
        ({"path": list("ab"), "cat": ["0", "1"], "dog": ["1", "1"]}, {"data.label_columns": ["cat", "dog"]}),
        ({"path": list("ab"), "species": ["cat", "dog"]}, {"data.label_column": "species"}),
        (
            {"path": list("abcd"), "label": list("xyxy"), "patient_id": ["1", "1", "2", "2"]},
            {"data.group_column": "patient_id"},
        ),
        ({"path": list("abcd"), "label": list("xyxy"), "case": list("1234")}, {}),
        ({"path": list("abcd"), "label": ["red fox", "red panda", "grey wolf", "red fox"]}, {}),
        (
            {"File": list("abcd"), "tags": ["mono", "mono defective", "poly", "poly defective"]},
            {"data.path_column": "File", "data.label_column": "tags", "data.label_separator": " "},
        ),
    ],
)
def test_a_table_is_read_as_its_columns_say(columns: dict[str, list[str]], expected: dict[str, Any]) -> None:
    assert {one.key: one.value for one in settings_of_table(columns)} == expected


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        # columns that are something else already, though their names are those of groups
        ({"path": list("abcd"), "case_type": list("xyxy")}, {"data.label_column": "case_type"}, {}),
        ({"group_image": list("aabb"), "label": list("xyxy")}, {"data.path_column": "group_image"}, {}),
        ({"path": list("abcd"), "label": list("xyxy"), "group": list("ttvv")}, {"data.split_column": "group"}, {}),
        (
            {"path": list("abcd"), "animal": list("0101"), "person": list("0011")},
            {},
            {"data.label_columns": ["animal", "person"]},
        ),
        ({"path": list("abcd"), "animal": list("0101")}, {"data.label_columns": ["animal"]}, {}),
        (
            {"path": list("abcd"), "tag": list("xyxy"), "site": list("1122")},
            {"data.label_column": "tag"},
            {"data.group_column": "site"},
        ),
        # several labels in the column that is named
        (
            {"path": list("abc"), "label": list("xyx"), "kinds": ["cat;dog", "cat", "dog"]},
            {"data.label_column": "kinds"},
            {"data.label_separator": ";"},
        ),
    ],
)
def test_a_column_that_has_a_meaning_is_not_proposed_for_another(
    columns: dict[str, list[str]], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert {one.key: one.value for one in settings_of_table(columns, given=given)} == expected


def test_several_labels_and_groups_of_a_table_are_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["path,label,patient"]
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (120, 130, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{('cat', 'dog', 'cat;dog')[number % 3]},p{number // 3}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    assert main(["init", "labels.csv", "--output", "start/mine.yaml"]) == 0
    data = yaml.safe_load((tmp_path / "start/mine.yaml").read_text())["data"]
    assert {key: data[key] for key in ("label_separator", "group_column")} == {
        "label_separator": ";",
        "group_column": "patient",
    }
    assert main(["plan", "--config-dir", "start", "-cn", "mine", "--cfg"]) == 0


def test_settings_that_are_given_are_written_and_not_proposed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        Image.new("RGB", (40, 40), (number * 20, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{'ab'[number % 2]},{'xy'[number % 2]}" for number in range(12)]
    (tmp_path / "own.csv").write_text("\n".join(["where,what,label", *rows]))
    assert main(["init", "own.csv"]) == 2
    assert "data.path_column='path': not a column" in capsys.readouterr().err
    assert main(["init", "own.csv", "data.path_column=where", "data.label_column=what", "data.batch_size=3"]) == 0
    data = yaml.safe_load((tmp_path / "own.yaml").read_text())["data"]
    assert (data["path_column"], data["label_column"], data["batch_size"]) == ("where", "what", 3)
    assert main(["init", "own.csv", "data.pathcolumn=where", "--output", "b.yaml"]) == 2
    assert "Did you mean 'data.path_column'?" in capsys.readouterr().err


def test_what_it_cannot_look_at_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for word, message in (("nowhere", "DIR='nowhere': no such folder"), ("empty", "no images found")):
        assert main(["init", word]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_name_in_the_data_adds_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    # what is written is the user's own configuration, which may name classes; YAML ends a line at U+2028
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "s3cret")
    grey_images(tmp_path / "images", 40, seed=0)

    def table(column: str) -> list[str]:
        cells = "".join(f"{number}.png,{'ab'[number % 2]},{number // 4}\n" for number in range(40))
        (tmp_path / "images/table.csv").write_text(f'path,label,"{column}"\n{cells}', encoding="utf-8")
        return ["init", "images/table.csv"]

    column = "patient\u2028callbacks:\u2028  x:\u2028    _target_: os.getcwd"
    assert main(table(column)) == 0
    settings = yaml.safe_load((tmp_path / "table.yaml").read_text(encoding="utf-8"))
    assert set(settings) <= {"defaults", "data", "input", "loss", "monitor"}
    assert settings["data"]["group_column"] == column

    (tmp_path / "table.yaml").unlink()
    assert main(table("patient ${oc.env:SECRET}")) == 2
    said = capsys.readouterr()
    assert "'patient ${oc.env:SECRET}': cannot be a setting." in said.err
    assert "s3cret" not in said.out + said.err


def test_a_folder_whose_name_interpolates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    grey_images(tmp_path / "a ${oc.env:HOME}/b", 2, seed=0)
    for line in (["init"], ["plan"], ["train"]):
        assert main([*line, "a ${oc.env:HOME}"]) == 2
        assert "a ${oc.env:HOME}': cannot be a setting." in capsys.readouterr().err
