"""What a finished run keeps on the disk is enough for everything after it, and runs are listed, compared and cleaned."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.commands.runs import RunSummary, comparison, curve, runs_below, summary_of
from finetune.config import compose
from finetune.errors import UserError
from finetune.report.usage import commands
from finetune.run_folder import RunFolder
from finetune.wilson import wilson
from tests.conftest import TINY_RESNET10T

Captured = pytest.CaptureFixture[str]
SHORT = ["schedule=head_then_all", "epochs=1", "report=true"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, pets: Path) -> Path:
    """A finished run with the settings of a user, who does not say what to keep."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    tiny = [word for word in TINY_RESNET10T if word not in ("keep=all", "report=false")]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([str(pets), *tiny, *SHORT, f"run_dir={folder}"]) == 0
    (folder.parent / "printed.txt").write_text(printed.getvalue())
    return folder


def test_a_finished_run_keeps_the_network_twice_and_no_checkpoint(run_dir: Path) -> None:
    network = (run_dir / "model/model.safetensors").stat().st_size
    large = [path for path in run_dir.rglob("*") if path.is_file() and path.stat().st_size > network / 4]
    assert sorted(path.name for path in large) == ["final.safetensors", "model.safetensors"]
    assert sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file()) < 2.1 * network
    assert not [*run_dir.rglob("*.ckpt"), *run_dir.rglob("start.safetensors")]


def test_what_follows_training_needs_nothing_else(run_dir: Path, pets: Path, tmp_path: Path, capsys: Captured) -> None:
    page = (run_dir / "report.html").read_text()
    assert main(["report", str(run_dir)]) == 0
    again = (run_dir / "report.html").read_text()
    assert ("farthest" in page) == ("farthest" in again)
    moved = json.loads((run_dir / "movement.json").read_text())
    assert moved[0]["stem"] == 0.0
    assert moved[1]["stem"] > 0
    assert main(["evaluate", str(run_dir)]) == 0
    assert main(["evaluate", str(run_dir), str(pets)]) == 0
    assert main(["predict", str(run_dir), str(pets), "--output", str(tmp_path / "p.csv")]) == 0
    assert main(["export", str(run_dir), "--format", "head", "--output", str(tmp_path / "head.safetensors")]) == 0
    capsys.readouterr()
    assert main(["resume", str(run_dir)]) == 0
    assert "already finished" in capsys.readouterr().out


def test_results_and_bundle_are_written_again_from_what_is_kept(run_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    (copy / "results.json").unlink()
    shutil.rmtree(copy / "model")
    assert main(["resume", str(copy)]) == 0
    assert (copy / "model/model.safetensors").read_bytes() == (run_dir / "model/model.safetensors").read_bytes()
    before, after = (json.loads((folder / "results.json").read_text()) for folder in (run_dir, copy))
    assert (before["test"], before["val"], before["weights_hash"]) == (
        after["test"],
        after["val"],
        after["weights_hash"],
    )
    assert (copy / "movement.json").read_bytes() == (run_dir / "movement.json").read_bytes()


def test_the_end_of_a_run_names_what_comes_next(run_dir: Path, tmp_path: Path, capsys: Captured) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    (copy / "results.json").unlink()
    assert main(["resume", str(copy)]) == 0
    out = capsys.readouterr().out
    for command in ("predict", "evaluate", "export"):
        assert f"  finetune {command} {copy} " in out.split("next:")[1]


def test_what_is_printed_fits_80_columns(run_dir: Path, pets: Path, tmp_path: Path, capsys: Captured) -> None:
    long = Path(
        shutil.copytree(run_dir, tmp_path / "2026-12-01_00-00-00-pets-with-a-long-name-tf_efficientnet_lite0-gradual")
    )
    config = (long / "config.yaml").read_text()
    (long / "config.yaml").write_text(config.replace("resnet10t", "a_network_with_a_name_that_fills_the_table"))
    assert main(["plan", str(pets), *TINY_RESNET10T, "data.augment=trivial_augment", "schedule.warmup_epochs=1"]) == 0
    for words in (["evaluate", run_dir], ["runs", run_dir, long], ["runs", "compare", run_dir, long], ["settings"]):
        assert main(list(map(str, words))) == 0
    printed = (run_dir.parent / "printed.txt").read_text() + capsys.readouterr().out
    one_thing = re.compile(r"\s*(?:[\w ]+: )?(?:finetune .*|\S+)")
    wide = [line for line in printed.splitlines() if len(line) > 80 and not one_thing.fullmatch(line)]
    assert wide == []
    for line in ("phase 1 of 2: head", "next:", "test acc (95 %)", "calibration error: ", "seed=0", "best epoch"):
        assert line in printed


def test_a_run_without_a_report_names_the_line_that_writes_it(run_dir: Path, tmp_path: Path, capsys: Captured) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "a copy"))
    (copy / "results.json").unlink()
    capsys.readouterr()
    assert main(["resume", str(copy)]) == 0
    assert "finetune report" not in capsys.readouterr().out
    assert ("write its report", "finetune report 'a run'") in commands("a run", reported=False)


def test_runs_are_listed_with_state_accuracy_and_size(run_dir: Path, tmp_path: Path, capsys: Captured) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(run_dir, runs / "done")
    shutil.copytree(run_dir, runs / "sweep/0")
    (runs / "sweep/0/results.json").unlink()
    assert [path.name for path in runs_below(runs)] == ["done", "0"]
    assert main(["runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert f"{runs / 'done'}" in out
    assert "finished" in out
    assert "not finished" in out
    assert f"continue with: finetune resume {runs / 'sweep/0'}" in out
    share = json.loads((run_dir / "results.json").read_text())["test"]["acc"]
    assert f"{share:.4f} (" in out


def test_runs_are_compared_side_by_side(run_dir: Path, tmp_path: Path, capsys: Captured) -> None:
    other = Path(shutil.copytree(run_dir, tmp_path / "second"))
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("label_smoothing: 0.0", "label_smoothing: 0.3", 1))
    assert main(["runs", "compare", str(run_dir), str(other)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["settings", "that", "differ", "first", "second"] in lines
    assert ["schedule.label_smoothing", "0.0", "0.3"] in lines
    assert [line for line in lines if line[:1] == ["val/loss"] and len(line) == 3]
    assert [line for line in lines if line[:2] == ["test", "acc"]]
    # a loss within its interval, which is that of the images that the run has written
    (loss,) = (line for line in lines if line[:2] == ["test", "loss"])
    low, high = map(float, loss[3].strip("()").split("-"))
    assert low < float(loss[2]) < high
    assert not [line for line in lines if line[:1] == ["run_dir"]]


def test_clean_deletes_checkpoints_of_finished_runs_only_and_only_when_told(
    run_dir: Path, tmp_path: Path, capsys: Captured
) -> None:
    done = Path(shutil.copytree(run_dir, tmp_path / "done"))
    stopped = Path(shutil.copytree(run_dir, tmp_path / "stopped"))
    (stopped / "results.json").unlink()
    for folder in (done, stopped):
        for name in ("last.ckpt", "best.ckpt", "start.safetensors"):
            (folder / f"phases/1-all/{name}").write_bytes(b"0" * 1000)
    assert main(["runs", "clean", str(tmp_path)]) == 0
    # the line deletes what was counted, not what lies in runs/
    assert f"can be deleted: finetune runs clean {tmp_path} --yes" in capsys.readouterr().out
    assert len(RunFolder(done).spare_files()) == 3
    assert main(["runs", "clean", str(tmp_path), "--yes"]) == 0
    assert RunFolder(done).spare_files() == []
    assert len([*stopped.rglob("*.ckpt"), *stopped.rglob("start.safetensors")]) == 3
    assert {path.name for path in run_dir.rglob("*")} == {path.name for path in done.rglob("*")}


def test_a_run_deletes_no_checkpoint_of_another_run_through_a_linked_folder(
    run_dir: Path, tmp_path: Path, capsys: Captured
) -> None:
    mine, foreign = (Path(shutil.copytree(run_dir, tmp_path / name)) for name in ("mine", "foreign"))
    (mine / "phases/1-all/last.ckpt").write_bytes(b"0" * 1000)
    shutil.rmtree(foreign / "phases/1-all")
    (foreign / "phases/1-all").symlink_to("../../mine/phases/1-all")
    for words in (["resume", str(foreign)], ["runs", "clean", str(foreign), "--yes"]):
        assert main(words) == 2
        assert f"phases/1-all: leads out of the run folder, to {mine}" in capsys.readouterr().err
        assert (mine / "phases/1-all/last.ckpt").exists()


def test_clean_follows_a_typed_link_and_names_one_that_a_folder_holds(
    run_dir: Path, tmp_path: Path, capsys: Captured
) -> None:
    mine = Path(shutil.copytree(run_dir, tmp_path / "disk" / "mine"))
    (tmp_path / "foreign").mkdir()
    for link in (tmp_path / "runs", tmp_path / "foreign" / "mine"):
        link.symlink_to(mine.parent if link.name == "runs" else mine)
    checkpoint = mine / "phases/1-all/last.ckpt"
    checkpoint.write_bytes(b"0")
    assert main(["runs", "clean", str(tmp_path / "foreign"), "--yes"]) == 0
    assert f"left as it is, a link to another place: finetune runs clean {mine} --yes" in capsys.readouterr().out
    assert checkpoint.exists()
    assert main(["runs", "clean", str(tmp_path / "runs"), "--yes"]) == 0
    assert not checkpoint.exists()


def test_keep_all_keeps_what_lies_between_phases() -> None:
    assert compose(["data=digits"]).keep == "results"
    assert compose(["data=digits", "keep=all"]).keep == "all"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs", "nowhere"], "takes list, compare, clean. Given: nowhere."),
        (["runs", "compair"], "Did you mean 'compare'?"),
        (["runs", "compare", "."], "compare needs two runs or more"),
        (["runs", "list", "nowhere"], "nowhere: no such folder"),
        (["runs"], "runs: no such folder. Name the folder of your runs"),
        (["runs", "list", ".", "--yes"], "--yes: belongs to finetune runs clean."),
    ],
)
def test_mistakes_are_answered(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_runs_in_the_current_folder_are_named_where_the_usual_folder_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text("{}")
    for words, line in ((["runs"], "finetune runs ."), (["runs", "clean", "--yes"], "finetune runs clean --yes .")):
        assert main(words) == 2
        assert capsys.readouterr().err.strip() == f"runs: no runs there. The current folder has some: {line}"


def test_intervals_and_curves_are_those_of_the_numbers() -> None:
    # Wilson's interval for 8 of 10, as statsmodels gives it
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0.0, 10)[0] == 0.0
    assert curve([]) == ""
    assert curve([1.0, 1.0]) == "▁▁"
    assert curve([0.0, float("nan"), 1.0]) == "▁?█"


def test_a_run_is_read_from_its_files(run_dir: Path, pets: Path) -> None:
    one = summary_of(run_dir)
    assert one.state == "finished"
    assert one.settings["data.root"] == str(pets)
    assert one.test_images == len((run_dir / "predictions.csv").read_text().splitlines()) - 1
    assert len(one.epochs) == 2


def test_settings_that_a_missing_phase_leaves_as_they_are_are_no_difference() -> None:
    one = {"schedule.phases.0.lr": "0.1", "schedule.phases.1.lr": "0.2", "schedule.phases.1.patience": "null"}
    runs = [
        RunSummary(path=Path(name), state="finished", settings=settings, results=None, epochs=[], size_bytes=0)
        for name, settings in {"a": one, "b": {"schedule.phases.0.lr": "0.1"}}.items()
    ]
    text = "\n".join(comparison(runs))
    assert "schedule.phases.1.lr" in text
    assert "patience" not in text


def test_what_lies_in_the_place_of_the_results_is_named(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path).is_finished
    (tmp_path / "results.json").symlink_to("results.json")
    with pytest.raises(UserError, match=r"results\.json: cannot be opened"):
        _ = RunFolder(tmp_path).is_finished
