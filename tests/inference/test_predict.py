"""Prediction of files into tables: streamed, resumed after a kill; with a network, and with a fake engine that counts."""

import csv
import io
import json
import logging
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch

from finetune.cli import main
from finetune.confidence.conformal import PredictionSets
from finetune.confidence.selective import Acceptance
from finetune.errors import UserError
from finetune.inference.answers import Answers
from finetune.inference.image_paths import find_images
from finetune.inference.job_store import job_path
from finetune.inference.predict import predict_to_file
from finetune.inference.torch_engine import TorchEngine
from tests.bundles import small_bundle
from tests.export.odd_files import write_files


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle"), size=(32, 32))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_files(folder, 40)
    (folder / "0007.webp").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return folder


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The messages that the user sees."""
    caplog.set_level(logging.INFO, "finetune")
    return caplog


class Fake:
    """An engine whose probabilities are a function of the path, and that can fail after a number of images."""

    def __init__(self, dies_after: int = 10**9) -> None:
        self.classes = ("a", "=b", "c")
        self.multi_label, self.tells_unknown = False, False
        self.identity: dict[str, Any] = {"model": "fake"}
        self.left = dies_after
        self.seen: list[str] = []

    def read(self, path: str) -> str:
        if "bad" in path:
            raise UserError("no image")
        return path

    def classify(self, images: list[str]) -> Answers:
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= len(images)
        self.seen += images
        values = np.array([[hash_of(path, k) for k in range(3)] for path in images], dtype=np.float32)
        probabilities: npt.NDArray[np.float32] = values / values.sum(1, keepdims=True)
        # the second letter of a path makes an image unknown
        scores = np.array([1.5 if path[1] == "?" else 0.5 for path in images], np.float32)
        return Answers(probabilities_NK=probabilities, unknown_N=scores if self.tells_unknown else None)


def hash_of(path: str, k: int) -> int:
    return 1 + (sum(map(ord, path)) * (k + 3)) % 17


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_rows_say_what_the_network_says_and_why_a_file_is_unreadable(
    bundle: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(bundle), str(images), "--output", str(tmp_path / "p.csv"), "--top-k", "2"]
    assert main(command) == 0
    assert "40 images, 1 of them unreadable" in capsys.readouterr().out
    rows = rows_of(tmp_path / "p.csv")
    assert len(rows) == 40
    engine = TorchEngine(bundle)
    row = rows[3]
    with torch.inference_mode():
        shares = engine.classifier(engine.read(row["path"])[None]).softmax(1)[0]
    best = shares.argsort(descending=True)
    assert row["predicted"].removeprefix("'") == engine.classes[best[0]]
    assert row["predicted_2"].removeprefix("'") == engine.classes[best[1]]
    assert float(row["probability"]) == pytest.approx(float(shares[best[0]]), abs=1e-6)
    assert (rows[7]["predicted"], rows[7]["probability"]) == ("", "")
    assert "damaged" in rows[7]["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_a_list_of_which_nothing_can_be_read_is_a_failure_with_its_reasons_kept(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("path\nnowhere/1.png\nnowhere/2.png\n")
    assert main(["predict", str(bundle), str(tmp_path / "list.csv"), "--output", str(tmp_path / "p.csv")]) == 1
    assert "list.csv: no image could be read, so nothing was predicted." in capsys.readouterr().err
    assert ["nowhere" in row["path"] and bool(row["error"]) for row in rows_of(tmp_path / "p.csv")] == [True, True]


def test_the_three_forms_hold_the_same_rows(tmp_path: Path) -> None:
    paths = [f"img{n}" for n in range(20)] + ["bad"]
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert predict_to_file(Fake(), paths, tmp_path / f"p{suffix}", top_k=3, batch_size=4) == (21, 1)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    text = rows_of(tmp_path / "p.csv")
    for line, row, cells in zip(lines, table, text, strict=True):
        assert line["path"] == row["path"] == cells["path"]
        assert line["predicted"] == row["predicted"] == cells["predicted"].removeprefix("'")
        assert (
            line["probability"] == row["probability"] == (float(cells["probability"]) if cells["probability"] else None)
        )
        assert [entry["class"] for entry in line["top"]] == [
            row[name] for name in ("predicted", "predicted_2", "predicted_3") if row[name]
        ]


def test_what_is_unknown_and_what_is_accepted_stand_in_columns_of_every_form(tmp_path: Path) -> None:
    engine = Fake()
    engine.tells_unknown = True
    least = Acceptance(least=0.4)
    for suffix in (".csv", ".jsonl", ".parquet"):
        predict_to_file(
            engine,
            ["a1", "a?", "b2", "bad"],
            tmp_path / f"p{suffix}",
            acceptance=least,
            sets=PredictionSets(least=0.3),
            names_unknown=True,
            batch_size=2,
        )
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["known"] for line in lines] == [True, False, True, None]
    assert [line["unknown_score"] for line in lines] == [0.5, 1.5, 0.5, None]
    assert [line["predicted"] for line in lines] == [lines[0]["nearest"], "unknown", lines[2]["nearest"], ""]
    assert lines[1]["nearest"] in engine.classes
    for line in lines[:3]:
        assert line["accepted"] == (line["probability"] >= 0.4 and line["known"])
    assert {line["accepted"] for line in lines[:3]} == {True, False}
    for line, path in zip(lines, ["a1", "a?", "b2"], strict=False):
        shares = engine.classify([engine.read(path)]).probabilities_NK[0]
        order = np.argsort(-shares, kind="stable")
        wanted = [engine.classes[at] for rank, at in enumerate(order) if rank == 0 or shares[at] >= 0.3]
        assert line["set"] == ";".join(wanted)
    assert lines[3]["set"] is None
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert table == lines
    text = rows_of(tmp_path / "p.csv")
    assert list(text[0]) == [
        "path",
        "predicted",
        "probability",
        "nearest",
        "unknown_score",
        "known",
        "accepted",
        "set",
        "error",
    ]
    assert [(row["unknown_score"], row["known"]) for row in text] == [
        ("0.5", "true"),
        ("1.5", "false"),
        ("0.5", "true"),
        ("", ""),
    ]
    with pytest.raises(UserError, match="--unknown: this model cannot tell unknown images"):
        predict_to_file(Fake(), ["a1"], tmp_path / "p.csv", names_unknown=True)


def test_killed_ten_times_and_resumed_the_output_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    paths = [f"img{n}{'bad' if n % 11 == 0 else ''}" for n in range(500)]
    predict_to_file(Fake(), paths, tmp_path / "whole.csv", top_k=2, batch_size=8)
    chance, seen = random.Random(0), 0
    for _ in range(10):
        engine = Fake(dies_after=chance.randint(1, 40))
        with pytest.raises(KeyboardInterrupt):
            predict_to_file(engine, paths, tmp_path / "parts.csv", top_k=2, batch_size=8)
        seen += len(engine.seen)
        assert job_path(tmp_path / "parts.csv").exists()
        assert not (tmp_path / "parts.csv").exists()
    engine = Fake()
    predict_to_file(engine, paths, tmp_path / "parts.csv", top_k=2, batch_size=8)
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert len(engine.seen) < 480, "it began anew"
    assert not job_path(tmp_path / "parts.csv").exists()


def test_a_changed_list_keeps_what_comes_before_the_change(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Fake(dies_after=20), [f"i{n}" for n in range(30)], tmp_path / "p.csv", batch_size=5)
    changed = [f"i{n}" for n in range(12)] + ["new"] + [f"i{n}" for n in range(12, 30)]
    engine = Fake()
    predict_to_file(engine, changed, tmp_path / "p.csv", batch_size=5)
    assert [row["path"] for row in rows_of(tmp_path / "p.csv")] == changed
    assert engine.seen == changed[10:]
    assert log.messages == ["reusing 10 rows from an earlier attempt"]


def test_other_settings_begin_anew_and_say_so(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    paths = [f"i{n}" for n in range(10)]
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Fake(dies_after=5), paths, tmp_path / "p.csv", batch_size=5)
    predict_to_file(Fake(), paths, tmp_path / "p.csv", batch_size=5, top_k=2)
    assert log.messages == ["an earlier attempt used other settings or another model; starting over"]
    assert len(rows_of(tmp_path / "p.csv")) == 10


def test_names_that_a_spreadsheet_would_compute_are_escaped_in_csv_only(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl"):
        predict_to_file(Fake(), ["=cmd|'/c calc'!A1.png"], tmp_path / f"p{suffix}", top_k=3)
    (row,) = rows_of(tmp_path / "p.csv")
    assert row["path"] == "'=cmd|'/c calc'!A1.png"
    assert "'=b" in row.values()
    line = json.loads((tmp_path / "p.jsonl").read_text())
    assert line["path"] == "=cmd|'/c calc'!A1.png"


def test_a_file_name_that_is_no_text_gets_a_row(tmp_path: Path) -> None:
    predict_to_file(Fake(), [os.fsdecode(b"a\xff.png")], tmp_path / "p.csv")
    assert rows_of(tmp_path / "p.csv")[0]["path"] == "a\\udcff.png"


def test_images_come_from_lists_patterns_and_standard_input(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.name for path in images.iterdir())
    (images / "list.csv").write_text("label,path\nx,0001.jpg\nx,0002.png\n")
    (images / "list.txt").write_text("0001.jpg\n\n0002.png\n")
    try:
        both = [str(images / "0001.jpg"), str(images / "0002.png")]
        assert list(find_images([images / "list.csv"])) == list(find_images([images / "list.txt"])) == both
        assert list(find_images([str(images / "*.bmp")])) == [str(images / n) for n in names if n.endswith(".bmp")]
        assert [os.path.basename(path) for path in find_images([images])] == names
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one.png\r\ntwo.png")))
        assert list(find_images(["-"])) == ["one.png", "two.png"]
        (images / "wrong.csv").write_text("a,b\n1,2\n")
        with pytest.raises(UserError, match=r"needs a column path or file.*Its columns: a, b"):
            list(find_images([images / "wrong.csv"]))
    finally:
        for extra in images.glob("*.csv"):
            extra.unlink()
        (images / "list.txt").unlink()


@pytest.mark.parametrize(
    "content",
    [
        b"label;path\nx;a.png\ny;\nz;sub/bad.png\nx;a.png\nw; c.png\n",
        b"label\tpath\nx\ta.png\ny\t\nz\tsub/bad.png\nx\ta.png\nw\t c.png\n",
        "path,label\na.png,x\n,y\nsub/bad.png,z\na.png,x\n c.png,w\n".encode("utf-16"),
    ],
)
def test_every_row_of_a_table_comes_back_in_order_with_its_path_as_it_was_given(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    engine = Fake()
    counts = predict_to_file(engine, find_images([tmp_path / "t.csv"]), tmp_path / "p.csv", batch_size=2)
    rows = rows_of(tmp_path / "p.csv")
    assert counts == (5, 2)
    assert [row["path"] for row in rows] == ["a.png", "", "sub/bad.png", "a.png", " c.png"]
    assert [row["error"] for row in rows] == ["", "The row has no path.", "no image", "", ""]
    assert engine.seen == [str(tmp_path / name) for name in ("a.png", "a.png", "c.png")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "p.xlsx"], "Use one of .csv, .jsonl, .parquet"),
        (["--output", "p.csv", "--top-k", "6"], "from 1 to the number of classes, 5"),
        (["--output", "p.csv", "--top-k", "0"], "--top-k 0: must be at least 1"),
        (["--output", "p.csv", "--runtime", "onnx"], "Make one with: finetune export RUN --format onnx"),
    ],
)
def test_mistakes_are_told_before_the_work(
    bundle: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(bundle), str(images), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.csv"))
