"""Resuming a run whose folder or data has been moved, or with other workers or devices."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from finetune.checksums import keep_checksum
from finetune.cli import main
from tests.conftest import TINY_RESNET10T
from tests.runs import outcome, train_tiny


@pytest.fixture(scope="module")
def finished(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose data was given relative to the working directory at that time."""
    at = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(pets, at / "pets")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(at)
        words = [
            "data=folder",
            "data.root=pets",
            *TINY_RESNET10T,
            "schedule=head_then_all",
            "schedule.phases.0.epochs=1",
        ]
        return train_tiny([*words, "schedule.phases.1.epochs=1", "optimizer=sgd"], at / "run").run_dir


@pytest.fixture
def moved(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's folder as it was in the last phase, in another place; the working directory differs too."""
    run = tmp_path / "moved"
    shutil.copytree(finished, run)
    for name in ("results.json", "final.safetensors", "phases/1-all/result.json", "phases/1-all/last.ckpt"):
        (run / name).unlink()
    monkeypatch.chdir(tmp_path)
    return run


def test_a_moved_run_goes_on_from_any_directory(moved: Path, finished: Path) -> None:
    assert main(["resume", str(moved)]) == 0
    assert outcome(moved) == outcome(finished)


def test_a_run_whose_data_has_moved_says_what_to_give_and_goes_on_with_it(
    moved: Path, finished: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "other pets"
    shutil.copytree(pets, elsewhere)
    hidden = finished.parent / "hidden"
    (finished.parent / "pets").rename(hidden)
    try:
        assert main(["resume", str(moved)]) == 2
        assert f"give its new path: finetune resume {moved} data.root=DIR" in capsys.readouterr().err
        assert main(["evaluate", str(finished)]) == 2
        assert f"give its new path: finetune evaluate {finished} data.root=DIR" in capsys.readouterr().err
        assert main(["resume", str(moved), f"data.root='{elsewhere}'"]) == 0
        assert "data.root: " in capsys.readouterr().out
        found, expected = outcome(moved), outcome(finished)
        # the predictions contain the image paths, which have changed
        assert found["files"].pop("predictions.csv") != expected["files"].pop("predictions.csv")
        assert found == expected
        # stored, so that the next resume uses it
        assert yaml.safe_load((moved / "config.yaml").read_text())["data"]["root"] == str(elsewhere)
        # the same images at another place keep the run's splits
        output = tmp_path / "metrics.json"
        assert main(["evaluate", str(finished), f"data.root='{elsewhere}'", "--output", str(output)]) == 0
        tested = json.loads((finished / "results.json").read_text())["test"]
        assert json.loads(output.read_text())["confusion"] == tested["confusion"]
    finally:
        hidden.rename(finished.parent / "pets")


def test_other_workers_are_said_and_change_nothing(
    moved: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(moved), "data.num_workers=2"]) == 0
    assert "data.num_workers: 0 -> 2 (the result does not depend on it)" in capsys.readouterr().out
    assert outcome(moved) == outcome(finished)


def test_more_workers_and_machines_than_there_are_here_are_left_out_with_a_word(
    moved: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # as a run of a larger machine, or of several, records them; a million loaders would take all memory here
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["data"]["num_workers"], config["trainer"]["num_nodes"] = 10**6, 2
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    keep_checksum(moved / "config.yaml")
    assert main(["resume", str(moved)]) == 0
    printed = capsys.readouterr()
    assert "config.yaml: data.num_workers=1000000 is more than the" in printed.err
    assert outcome(moved) == outcome(finished)
    assert main(["evaluate", str(moved), "data.num_workers=1000000"]) == 2
    assert "data.num_workers=1000000: at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"best_epoch": 10**15}, "Its best_epoch is 1000000000000000, of 1 epochs"),
        ({"best_epoch": -1}, "Its best_epoch is -1, of 1 epochs"),
        ({"epochs": 3}, "It has 1 rows for 3 epochs"),
        ({"epochs": 0, "rows": []}, "It has 0 rows for 0 epochs"),
        ({"restored": "first"}, "Its restored is 'first', and must be best, last or start"),
        ({"rows": [{"phase": "head", "epoch": 0, "step": 1, "val/loss": 1.0}]}, "Its rows have no val/acc"),
    ],
)
def test_a_phase_result_that_the_next_phase_could_not_begin_from_is_named(
    changes: dict[str, object], says: str, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = moved / "phases/0-head/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    keep_checksum(file)
    assert main(["resume", str(moved)]) in (1, 2)
    assert f"result.json: damaged. {says}. " in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("strategy", "audo"), ("accelerator", "cpv"), ("devices", -3)])
def test_a_wrong_trainer_argument_names_the_file_where_it_stands_there(
    key: str, value: object, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["trainer"][key] = value
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    keep_checksum(moved / "config.yaml")
    assert main(["resume", str(moved)]) == 2
    assert capsys.readouterr().err.startswith(f"{moved / 'config.yaml'}: trainer.{key}={value!r}: ")
    # typed, it is the user's own
    assert main(["resume", str(moved), f"trainer.{key}={value}"]) == 2
    assert capsys.readouterr().err.startswith(f"trainer.{key}={value!r}: ")


@pytest.mark.parametrize("word", ["seed=1", "data.batch_size=4", "trainer.precision=bf16-mixed"])
def test_what_the_result_depends_on_cannot_be_changed(
    word: str, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(moved), word]) == 2
    assert f"{word}: cannot be changed in a run that has started" in capsys.readouterr().err
    assert not (moved / "results.json").exists()


def test_a_run_folder_in_use_is_refused(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_file_lock import holder

    process = holder(moved)
    assert main(["resume", str(moved)]) == 2
    assert f"in use. process {process.pid} on" in capsys.readouterr().err
    process.kill()
    process.join(30)
