"""The prediction sheet: by class and confidence, with Grad-CAM, counted to the end, with names escaped."""

import csv
import re
from pathlib import Path

import pytest
import torch

from finetune.cli import main
from finetune.data.image_file import UnreadableImage
from finetune.report.prediction_sheet import MOST_OF_CLASS, PredictionSheet, Sighting
from tests.bundles import small_bundle
from tests.export.odd_files import write_files


def sighting(name: str, predicted: str, probability: float) -> Sighting:
    return Sighting(path=name, name=name, predicted=predicted, target=0, probability=probability)


def read(path: str) -> torch.Tensor:
    if "gone" in path:
        raise UnreadableImage(path, "no such file")
    return torch.full((3, 32, 32), 90, dtype=torch.uint8)


def test_the_largest_class_comes_first_surest_first_and_of_many_the_surest_and_the_least_sure_are_shown() -> None:
    sheet = PredictionSheet(several=False)
    sheet.add(sighting("one.png", "dog", 0.6))
    for number in range(100):
        sheet.add(sighting(f"{number}.png", "cat", number / 100))
    page = sheet.render(model="m", read=read, classifier=None)
    assert re.findall(r"<h2>(\w+)", page)[:2] == ["cat", "dog"]
    shown = [int(number) for number in re.findall(r"</b> (\d+)\.png", page)]
    assert shown == [*range(99, 87, -1), *range(11, -1, -1)]
    assert "100 images, 24 shown" in page
    assert "ONNX Runtime has no gradients" in page
    assert len(shown) == MOST_OF_CLASS


def test_equally_sure_images_are_each_shown_once_in_their_order() -> None:
    sheet = PredictionSheet(several=False)
    for number in range(16):
        sheet.add(sighting(f"{number}.png", "cat", 1.0))
    page = sheet.render(model="m", read=read, classifier=None)
    shown = [int(number) for number in re.findall(r"</b> (\d+)\.png", page)]
    assert shown == list(range(16))


def test_counts_at_the_end_add_up_and_what_cannot_be_shown_is_said() -> None:
    sheet = PredictionSheet(several=True)
    for name, predicted in (("a.png", "cat"), ("gone.png", "cat"), ("b.png", "")):
        sheet.add(sighting(name, predicted, 0.5))
    sheet.add_unreadable("broken.png", "not an image")
    page = sheet.render(model="m", read=read, classifier=None)
    counts = page[page.index('id="counts"') :]
    assert re.findall(r'class="name">([^<]+)</td><td>(\d+)</td><td>([\d.]+)%', counts) == [
        ("cat", "2", "50.0"),
        ("none of the classes", "1", "25.0"),
        ("unreadable", "1", "25.0"),
    ]
    assert page.count("cannot be shown") == 1
    assert "not an image" in page


def test_names_cannot_become_part_of_the_page() -> None:
    evil = '"><script>alert(1)</script>\x1b.png'
    sheet = PredictionSheet(several=False)
    sheet.add(sighting(evil, evil, 0.5))
    sheet.add_unreadable(evil, evil)
    page = sheet.render(model=evil, read=read, classifier=None)
    assert "<script" not in page
    assert "\x1b" not in page


def test_a_job_writes_the_table_for_excel_and_the_sheet_with_a_heat_map_beside_each_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = small_bundle(tmp_path / "bundle", size=(64, 64))
    (tmp_path / "Übung").mkdir()
    write_files(tmp_path / "Übung", 4)
    (tmp_path / "Übung/broken.png").write_bytes(b"no image")
    table, sheet = tmp_path / "out.csv", tmp_path / "out.html"
    words = ["predict", str(bundle), str(tmp_path / "Übung"), "--output", str(table), "--sheet", str(sheet), "--excel"]
    assert main(words) == 0
    assert f"sheet: {sheet}" in capsys.readouterr().out
    assert table.read_bytes().startswith(b"\xef\xbb\xbfpath,")
    with table.open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    page = sheet.read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2 * 4
    assert page.count('alt="where the network looked"') == 4
    for row in rows:
        assert Path(row["path"]).name in page


def test_options_that_do_not_fit_are_refused_before_a_model_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "none", "x", "--output", "a.jsonl", "--excel"]) == 2
    assert "--excel: belongs to CSV. Use --output a.csv." in capsys.readouterr().err
    assert main(["predict", "none", "x", "--output", "a.csv", "--sheet", "a.pdf"]) == 2
    assert "--sheet a.pdf: the suffix chooses the form. Use one of .html." in capsys.readouterr().err
