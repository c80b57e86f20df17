import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.atomic_files import work_folder, write_json
from finetune.cli import main
from finetune.errors import RunError
from finetune.export.export import _move_into_place, _move_with_report, export_checked
from finetune.export.formats import FORMATS
from finetune.export.formats.kind import ExportJob, ExportRequest
from finetune.export.images import synthetic_images
from finetune.export.parity import ClientAnswer, ask_clients, compare, library_folders, make_reference
from finetune.export.parity_report import Difference, ParityReport, Speed, Throughput
from finetune.file_schema import PARITY, check_fields
from finetune.models.classifier import Classifier
from finetune.plain import to_plain
from finetune.report.export_section import tell_card
from finetune.runners.export import choose_images
from tests.bundles import small_bundle
from tests.export.odd_files import write_files
from tests.export.pictures import CLASSES
from tests.export.trained import settled_classifier

pytestmark = pytest.mark.usefixtures("resized_in_two_parts")
PASSED: dict[str, Any] = {"format": "onnx", "precision": "fp32", "opened_by": "x", "images": "y"}
PASSED |= {"unreadable": 0, "passed": True}


def test_the_command_hands_over_a_checked_export_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_bundle(tmp_path / "run", size=(32, 32))
    (tmp_path / "images").mkdir()
    write_files(tmp_path / "images", 8)
    # the export's own client reads it by no library
    np.save(tmp_path / "array.npy", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    images = [str(tmp_path / "images"), str(tmp_path / "array.npy")]
    command = ["export", str(tmp_path / "run"), "--format", "onnx", "--images", *images]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "parity: passed (onnxruntime" in printed
    folder = tmp_path / "run" / "exports"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.parity.json"]
    report = json.loads((folder / "model.onnx.parity.json").read_text())
    check_fields(report, PARITY, name="parity.json")
    assert report["passed"]
    assert set(report["speed"]["ways"]) == {"pytorch", "fp32"}
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.startswith("# A model")
    assert "| onnx fp32 | not labelled | not labelled | 100.0% |" in card
    tell_card(tmp_path / "run" / "README.md", folder, weights=report["weights"])
    assert (tmp_path / "run" / "README.md").read_text() == card
    # the exports of another run in the same folder are none of its own
    (folder / "other.onnx.parity.json").write_text(json.dumps({**report, "weights": "0" * 64}))
    tell_card(tmp_path / "run" / "README.md", folder, weights=report["weights"])
    assert (tmp_path / "run" / "README.md").read_text() == card
    assert (report["from_pixels"]["images"], report["from_files"]["images"]) == (9, 8)
    assert "plain Pillow cannot open 1 file" in report["remarks"][0]
    assert report["from_files"]["largest"] < 1e-5


def test_an_export_that_predicts_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = settled_classifier(name="resnet10t", size=(32, 32))
    images = synthetic_images(tmp_path, channels=3, count=4)
    whole = FORMATS["torch_export"]

    def spoilt(job: ExportJob, path: Path) -> None:
        whole.write(replace(job, classifier=settled_classifier(name="resnet10t", size=(32, 32), seed=1)), path)

    monkeypatch.setitem(FORMATS, "torch_export", replace(whole, write=spoilt))
    target = tmp_path / "out" / "model.pt2"
    with pytest.raises(RunError, match="predictions differ from the trained model's, so it was deleted"):
        export_checked(
            ExportJob(classifier=model, request=ExportRequest(format=FORMATS["torch_export"]), images=images), target
        )
    assert [path.name for path in target.parent.iterdir()] == ["model.pt2.failed.parity.json"]
    assert not json.loads((target.parent / "model.pt2.failed.parity.json").read_text())["passed"]


def test_a_folder_of_the_users_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_bundle(tmp_path / "run", size=(32, 32))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    command = ["export", str(tmp_path / "run"), "--format", "timm", "--output", str(tmp_path / "mine")]
    assert main(command) == 2
    assert "must be new, empty or an earlier export" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_a_file_of_the_users_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_bundle(tmp_path / "run", size=(32, 32))
    (tmp_path / "thesis.onnx").write_text("years")
    command = ["export", str(tmp_path / "run"), "--format", "onnx", "--output", str(tmp_path / "thesis.onnx")]
    assert main(command) == 2
    assert "must be new or an earlier export, which has thesis.onnx.parity.json beside it" in capsys.readouterr().err
    assert (tmp_path / "thesis.onnx").read_text() == "years"


def test_an_export_writes_nothing_through_a_link_out_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    small_bundle(mine, size=(32, 32))
    run.mkdir()
    (run / "model").symlink_to(mine)
    (run / "exports").symlink_to(mine)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in mine.iterdir())
    assert main(["export", str(run), "--format", "onnx"]) == 2
    assert f"exports/model.onnx: leads out of the run folder, to {mine / 'model.onnx'}" in capsys.readouterr().err

    # the model may lie elsewhere, to be read
    def exports(job: ExportJob, target: Path) -> ParityReport:
        times = Throughput(batch_1_ms=1, batch_32_ms=1, images_per_second=1)
        report = ParityReport(
            **{**PASSED, "weights": job.weights},
            from_pixels=Difference(images=1, largest=0, mean=0, agreement=1),
            speed=Speed(threads=1, processor="x", pixels=(1, 1), rounds=1, ways={"fp32": times, "pytorch": times}),
        )
        write_json(target.with_name("model.onnx.parity.json"), to_plain(report))
        return report

    monkeypatch.setattr("finetune.export.export.export_checked", exports)
    assert main(["export", str(run), "--format", "onnx", "--output", str(tmp_path / "model.onnx")]) == 0
    said = f"model/README.md: does not tell of this export. A link leads out of the run, to {mine / 'README.md'}"
    assert said in capsys.readouterr().out
    assert sorted((path.name, path.stat().st_mtime_ns) for path in mine.iterdir()) == before


def test_an_earlier_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "export"
    target.mkdir()
    (target / "parity.json").write_text("earlier")
    whole = os.replace

    def fails(source: Path, destination: Path) -> None:
        if source.name == "made":
            raise OSError("no")
        whole(source, destination)

    def replaced() -> None:
        with work_folder(target) as work:
            (work / "made").mkdir()
            (work / "made" / "parity.json").write_text("new")
            _move_into_place(work / "made", target)

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="no"):
        replaced()
    assert (target / "parity.json").read_text() == "earlier"
    monkeypatch.undo()
    replaced()
    assert (target / "parity.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_file_without_its_report_never_stands_at_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, target, told = (tmp_path / name for name in ("made", "model.onnx", "model.onnx.parity.json"))
    report = ParityReport(**PASSED)
    whole = os.replace

    def fails(source: Path, destination: Path) -> None:
        if destination == target:
            assert json.loads(told.read_text())["passed"]  # as a kill here would leave it
            raise OSError("no")
        whole(source, destination)

    made.write_text("new")
    for earlier in (None, "earlier"):
        if earlier is not None:
            target.write_text(earlier)
            told.write_text(earlier)
        with monkeypatch.context() as patched:
            patched.setattr("os.replace", fails)
            with pytest.raises(OSError, match="no"):
                _move_with_report(made, target, report)
        for path in (target, told):
            assert (path.read_text() if path.exists() else None) == earlier
    _move_with_report(made, target, report)
    assert (target.read_text(), json.loads(told.read_text())["passed"]) == ("new", True)


@pytest.mark.parametrize(("form", "code"), [("timm", 2), ("onnx", 2)])
def test_the_current_folder_is_not_replaced(
    form: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_bundle(tmp_path / "run", size=(32, 32))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["export", str(tmp_path / "run"), "--format", form, "--output", "."]) == code
    assert re.search(r"--output \.: must (not be|be a file)", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("total", "count", "compared"), [(600, 256, 256), (300, 256, 172), (300, 16, 16), (20, 16, 16)]
)
def test_eight_bits_are_calibrated_on_other_images_than_are_compared_where_there_are_enough(
    total: int, count: int, compared: int, tmp_path: Path
) -> None:
    files = [tmp_path / f"{name}{number:03}.png" for name in "ab" for number in range(total // 2)]
    for path in files:
        path.touch()
    model = settled_classifier(name="resnet10t", size=(32, 32))
    chosen = choose_images("", model, [str(tmp_path)], count=count, int8=True, folder=tmp_path)
    assert len(set(chosen.files)) == len(chosen.files) == compared
    assert len(set(chosen.calibration)) == min(128, total)
    assert set(chosen.files).isdisjoint(chosen.calibration) == (total >= 256)
    told = "others than it was calibrated on" if total >= 256 else "on which it was calibrated too"
    assert chosen.origin == f"--images, {told}"
    # of both classes alike, although the files lie class by class
    for part in (chosen.files, chosen.calibration):
        assert abs(sum(Path(file).name < "b" for file in part) - len(part) / 2) <= 1


def test_an_int8_model_is_made_of_another_file_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(model: Classifier, path: Path, **options: object) -> None:
        path.write_text("fp32")

    def quantise(source: Path, path: Path, **options: object) -> None:
        assert not path.exists()
        path.write_text(f"int8 of {source.read_text()}")

    monkeypatch.setattr("finetune.export.onnx.export_onnx", write)
    monkeypatch.setattr("finetune.export.quantize.quantise_onnx", quantise)
    measured: dict[str, str] = {}
    monkeypatch.setattr(
        "finetune.export.speed.measure_speed",
        lambda model, ways, **options: measured.update({way: path.read_text() for way, path in ways.items()}),
    )
    onnx = FORMATS["onnx"]
    job = ExportJob(
        classifier=settled_classifier(name="resnet10t", size=(32, 32)),
        request=ExportRequest(format=onnx, precision="int8"),
        images=synthetic_images(tmp_path, channels=3, count=1),
    )
    for name in ("model.onnx", "full.onnx"):
        onnx.write(job, tmp_path / name)
        assert onnx.measure is not None
        onnx.measure(job, tmp_path / name)
        assert measured == {"fp32": "fp32", "int8": "int8 of fp32"}


def test_swapped_class_names_fail_the_comparison(tmp_path: Path) -> None:
    model = settled_classifier(name="resnet10t", size=(32, 32))
    reference = make_reference(model, write_files(tmp_path, 4), origin="files")
    said = ClientAnswer(opened_by="x", classes=CLASSES[::-1], from_pixels=reference.shares, from_files=reference.shares)
    report = compare("onnx", said, reference, classes=CLASSES)
    assert report.problems == ("its class names differ from the model's, or their order does",)


def test_answers_that_are_no_numbers_fail_the_comparison(tmp_path: Path) -> None:
    model = settled_classifier(name="resnet10t", size=(32, 32))
    reference = make_reference(model, write_files(tmp_path, 4), origin="files")
    broken = torch.full(reference.shares.shape, float("nan")).numpy()
    said = ClientAnswer(opened_by="x", classes=CLASSES, from_pixels=broken, from_files=broken)
    assert not compare("onnx", said, reference, classes=CLASSES).passed


def test_precisions_that_a_format_does_not_have_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_bundle(tmp_path / "run", size=(32, 32))
    assert main(["export", str(tmp_path / "run"), "--format", "timm", "--precision", "int8"]) == 2
    assert "--precision int8: exists for --format onnx only" in capsys.readouterr().err


def test_libraries_are_found_where_the_package_lies_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment into which a wheel was installed."""
    beside = Path(np.__file__).parents[1]
    monkeypatch.setattr("finetune.export.client.__file__", str(beside / "finetune" / "export" / "client.py"))
    assert str(beside) in library_folders()


def test_a_library_that_takes_files_is_not_asked_about_one_that_it_cannot_open(tmp_path: Path) -> None:
    model = settled_classifier()
    (tmp_path / "images").mkdir()
    files = write_files(tmp_path / "images", 3)
    np.save(tmp_path / "array.npy", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    reference = make_reference(model, [*files, str(tmp_path / "array.npy")], origin="files")
    (tmp_path / "timm").mkdir()
    FORMATS["timm"].write(
        ExportJob(
            classifier=model,
            request=ExportRequest(format=FORMATS["timm"]),
            images=synthetic_images(tmp_path, channels=3, count=1),
        ),
        tmp_path / "timm",
    )
    (answer,) = ask_clients([(FORMATS["timm"], tmp_path / "timm", reference)])
    report = compare("timm", answer, reference, classes=CLASSES)
    assert report.passed
    assert report.from_pixels is not None
    assert report.from_files is not None
    assert (report.from_pixels.images, report.from_files.images) == (4, 3)
