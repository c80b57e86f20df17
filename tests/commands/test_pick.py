"""``finetune pick``: what to label next."""

import csv
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
from finetune.cli import main
from finetune.inference.pick import typical
from tests.conftest import TINY, make_pets, write_images
from tests.runs import train_tiny


def blobs(*sizes: int, seed: int = 0) -> np.ndarray:
    """Groups of points around directions at right angles to one another."""
    random = np.random.default_rng(seed)
    return np.concatenate([np.eye(8)[at] * 5 + random.normal(0, 0.4, (size, 8)) for at, size in enumerate(sizes)])


def test_typical_images_of_groups_without_labels_come_first_the_largest_group_first() -> None:
    pool = blobs(30, 12, 50, 20)
    group = np.repeat(np.arange(4), (30, 12, 50, 20))
    chosen = typical(pool, blobs(0, 1), 3, seed=0)
    assert group[chosen].tolist() == [2, 0, 3]
    # near the middle of its group
    centre = pool[group == 2].mean(0)
    distances = np.linalg.norm(pool[group == 2] - centre, axis=1)
    assert np.linalg.norm(pool[chosen[0]] - centre) < np.median(distances)
    # the same seed chooses the same
    assert typical(pool, blobs(0, 1), 3, seed=0) == chosen


def test_as_many_are_chosen_as_are_asked_for_each_once() -> None:
    pool = blobs(5, 3)
    for labelled in (np.zeros((0, 8)), blobs(4, 4, seed=1)):
        assert sorted(typical(pool, labelled, 8, seed=0)) == list(range(8))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pick")
    make_pets(folder / "pets")
    words = ["data=folder", f"data.root={folder / 'pets'}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    return train_tiny(words, folder / "run").run_dir


def test_the_command_writes_a_table_to_fill_in_and_leaves_out_what_has_labels(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool"
    write_images(pool, count=9, hue=(90, 200, 40), seed=7)
    shutil.copy(sorted(pool.iterdir())[0], pool / "copy.png")
    (pool / "broken.png").write_bytes(b"no picture")
    own = run_dir.parent / "pets"
    shutil.copy(next(own.rglob("*.png")), pool / "own.png")
    output, sheet = tmp_path / "to_label.csv", tmp_path / "to_label.html"
    monkeypatch.chdir(tmp_path)
    words = ["pick", str(run_dir), str(pool), str(own), "-n", "4", "--sheet", str(sheet)]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "4 images of 9 to label, beside 48 images with labels" in printed.out
    assert "left out: 1 copy, 49 images of the run's own data, 1 unreadable file" in printed.out
    assert "warning: unreadable: " in printed.err
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "predicted", "probability"]
    assert len({row["path"] for row in rows}) == 4
    assert all(Path(row["path"]).parent == pool and row["label"] == "" and row["predicted"] for row in rows)
    assert sheet.read_text().count("<figure") == 4
    # labels that somebody has filled in are never lost
    assert main(words) == 2
    assert "must be a new file, so that no labels in it are lost" in capsys.readouterr().err
    # filled in, it is a data set
    filled = [f"{row['path']},{'cat' if at % 2 else 'dog'}" for at, row in enumerate(rows)]
    output.write_text("\n".join(["path,label", *filled]) + "\n")
    assert main(["audit", "data=manifest", f"data.path={output}"]) == 0
    assert "Nothing wrong was found" in capsys.readouterr().out


def test_images_of_the_run_that_are_gone_are_counted(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "pool", count=3, hue=(90, 200, 40), seed=7)
    gone = next((run_dir.parent / "pets").rglob("*.png"))
    content = gone.read_bytes()
    gone.unlink()
    try:
        words = [str(run_dir), str(tmp_path / "pool"), "-n", "1", "--output", str(tmp_path / "l.csv")]
        assert main(["pick", *words]) == 0
    finally:
        gone.write_bytes(content)
    assert "1 image of 3 to label, beside 47 images with labels" in capsys.readouterr().out


def test_nothing_to_choose_from_is_said(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pick", str(run_dir), str(run_dir.parent / "pets"), "-n", "2", "--output", str(tmp_path / "a.csv")]
    assert main(words) == 1
    assert "nothing to choose from. left out: 48 images of the run's own data" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


def test_from_python_the_same_images_are_chosen_in_a_table_to_fill_in(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = tmp_path / "pool"
    write_images(pool, count=9, hue=(90, 200, 40), seed=7)
    (pool / "broken.png").write_bytes(b"no picture")
    words = ["pick", str(run_dir), str(pool), "-n", "4", "--output", str(tmp_path / "l.csv")]
    assert main(words) == 0
    with (tmp_path / "l.csv").open() as file:
        expected = [row["path"] for row in csv.DictReader(file)]
    model = finetune.load(run_dir)
    for run in (run_dir, model):
        table = finetune.pick(run, pool, 4)
        assert list(table.columns) == ["path", "label", "predicted", "probability"]
        assert list(table["path"]) == expected
        assert set(table["label"]) == {""}
        assert set(table["predicted"]) <= set(model.classes)
    assert "broken.png" in caplog.text
    two = sorted(pool.glob("*.png"))[:2]
    assert sorted(finetune.pick(run_dir, [two[0], str(two[1])], 5)["path"]) == [str(path) for path in two]
    with torch.no_grad():
        next(model.head.parameters()).add_(1)
    for call, message in (
        (lambda: finetune.pick(model, pool, 4), "run: this model's weights are no longer those in "),
        (lambda: finetune.pick(run_dir, pool, 0), "count=0: must be at least 1"),
        (lambda: finetune.pick(run_dir, [3], 1), "images: must be a path or a list of paths. It is a list"),
        (lambda: finetune.pick(run_dir, "nowhere", 1), "images='nowhere': no such file or folder"),
    ):
        with pytest.raises(finetune.UserError, match=re.escape(message)):
            call()
    with pytest.raises(
        finetune.RunError, match=r"images: nothing to choose from\. left out: 48 images of the run's own"
    ):
        finetune.pick(run_dir, run_dir.parent / "pets", 2)


def test_what_has_labels_is_known_by_its_place_and_its_bytes_however_many_there_are(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("finetune.inference.pick.MOST_LABELLED", 3)
    pets, pool = run_dir.parent / "pets", tmp_path / "pool"
    (tmp_path / "link").symlink_to(pets)
    shutil.copytree(pets, pool)
    write_images(pool / "new", count=2, hue=(90, 200, 40), seed=7)
    words = ["pick", str(run_dir), str(tmp_path / "link"), str(pool), "-n", "9", "--output", str(tmp_path / "l.csv")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "2 images of 2 to label, beside 3 of 48 images with labels" in printed
    assert "left out: 96 images of the run's own data" in printed


def test_the_table_is_read_from_wherever_it_lies_and_has_every_name_as_it_is(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("@pool"), count=2, hue=(90, 200, 40), seed=7)
    odd = Path(os.fsdecode(b"@pool/caf\xe9.png"))
    write_images(Path("more"), count=1, hue=(9, 200, 140), seed=8)
    next(Path("more").iterdir()).rename(odd)
    Path("labels").mkdir()
    assert main(["pick", str(run_dir), "@pool", "-n", "3", "--output", "labels/next.csv"]) == 0
    with open("labels/next.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert sorted(paths) == sorted(str(path.absolute()) for path in Path("@pool").iterdir())


def test_a_run_whose_images_are_gone_or_no_files_is_told(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "pool", count=3, hue=(90, 200, 40), seed=7)
    shutil.copytree(run_dir.parent, tmp_path / "moved")
    pets = run_dir.parent / "pets"
    pets.rename(run_dir.parent / "elsewhere")
    try:
        words = [str(run_dir), str(tmp_path / "pool"), "-n", "1", "--output", str(tmp_path / "l.csv")]
        assert main(["pick", *words]) == 0
    finally:
        (run_dir.parent / "elsewhere").rename(pets)
    said = capsys.readouterr()
    assert (
        "warning: The run's own images cannot be read, so images are chosen as if none had labels: data.root="
        in said.err
    )
    assert said.out.startswith("1 image of 3 to label: ")
    # images in memory are compared with all the same
    digits = train_tiny(["data=digits", "data.limit_per_class=4", *TINY, "schedule=probe"], tmp_path / "digits")
    words = [str(digits.run_dir), str(tmp_path / "pool"), "-n", "1", "--output", str(tmp_path / "d.csv")]
    assert main(["pick", *words]) == 0
    assert "1 image of 3 to label, beside 578 images with labels" in capsys.readouterr().out


def test_a_large_cluster_is_ordered_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(300)
    at_once = typical(points, blobs(0, 1), 5, seed=0)
    monkeypatch.setattr("finetune.inference.pick._ROWS", 7)
    assert typical(points, blobs(0, 1), 5, seed=0) == at_once
