"""Every export format, network, number of channels and adaptation, opened by its own client without this package."""

import os
from pathlib import Path

import pytest

from finetune.export.formats import FORMATS
from finetune.export.formats.timm import export_timm
from finetune.export.formats.torch_export import export_torch
from finetune.export.formats.torchvision import export_torchvision
from finetune.export.formats.transformers import export_transformers
from finetune.export.onnx import export_onnx, quiet_exporter, trace
from finetune.export.parity import ask_clients, compare, make_reference
from tests.export.odd_files import write_files
from tests.export.pictures import CLASSES
from tests.export.trained import settled_classifier, tell_unknown

# number of files of mixed sizes, formats and modes, each kind once or twice; few, so that all tests together stay fast. The
# whole matrix: FINETUNE_MATRIX_FILES=200 uv run pytest -s tests/export/test_matrix.py
WHOLE = "FINETUNE_MATRIX_FILES" in os.environ
FILES = {name: int(os.environ.get("FINETUNE_MATRIX_FILES", few)) for name, few in (("resnet18", 22), ("resnet50", 11))}
WRITERS = {
    "onnx": (export_onnx, "model.onnx"),
    "torch_export": (export_torch, "model.pt2"),
    "timm": (export_timm, ""),
    "torchvision": (export_torchvision, ""),
    "transformers": (export_transformers, ""),
}
ADAPTATIONS = [(3, "expand"), (1, "expand"), (1, "fold")]
MODELS = [(name, channels, adapt) for name in FILES for channels, adapt in ADAPTATIONS]
if not WHOLE:
    # each network, number of channels and adaptation once
    MODELS = [("resnet18", 1, "fold"), ("resnet50", 3, "expand")]


@pytest.mark.slow
def test_every_format_predicts_what_was_trained_in_a_process_without_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    files = write_files(tmp_path / "images", max(FILES.values()))
    exports, cases = [], []
    for name, channels, adapt in MODELS:
        model = settled_classifier(name=name, channels=channels, adapt=adapt, size=(64, 64))
        if name == "resnet18":
            # a calibrated model gives its probabilities wherever it goes, and says what is unknown where a format can
            model.temperature = 1.7
            tell_unknown(model)
        else:
            # several labels an image: sigmoids, and answers above a threshold of each class
            model.multi_label, model.thresholds = True, (0.5, 0.31, 0.07, 0.62, 0.4)
        reference = make_reference(model, files[: FILES[name]], origin="files")
        assert reference.shares.std(0).min() > 0.01, "answers that do not vary would prove nothing"
        if name != "resnet18" and not WHOLE:
            # each part is traced and exported: the eight of the first network show what they compute
            monkeypatch.setattr("finetune.data.pillow_resize._PARTS", 2)
        with quiet_exporter():
            program = trace(model, layout="nhwc")  # one trace serves two formats
        for form, (write, filename) in WRITERS.items():
            target = tmp_path / f"{name}-{channels}-{adapt}-{form}"
            target.mkdir()
            target = target / filename
            write(model, target, **({"program": program} if form in ("onnx", "torch_export") else {}))
            exports.append((FORMATS[form], Path(target), reference))
            cases.append((form, name, channels, adapt))
    answers = ask_clients(exports)
    lines = ["format        network   channels  same pixels  from file  top-1   files"]
    reports = []
    for (form, name, channels, adapt), (_, _, reference), said in zip(cases, exports, answers, strict=True):
        report = compare(form, said, reference, classes=CLASSES)
        pixels, by_file = report.from_pixels, report.from_files
        lines.append(
            f"{form:13} {name:9} {channels} {adapt:8}{pixels.largest:10.1e} {by_file.largest:10.1e}"
            f"  {by_file.agreement:6.1%} {by_file.images:5}"
        )
        reports.append(report)
    with capsys.disabled():
        print("", *lines, sep="\n")
    for report, (_, name, _, _) in zip(reports, cases, strict=True):
        assert report.passed, report
        assert report.from_pixels.largest <= 1e-4
        assert report.from_files.largest <= 1e-3
        if name == "resnet18" and report.format in ("onnx", "torch_export"):
            assert report.unknown is not None
            assert report.unknown.agreement == 1.0
        elif name == "resnet18":
            assert "cannot tell images that are unlike the training images" in report.remarks[-1]
        assert report.from_pixels.agreement == report.from_files.agreement == 1.0
        assert report.decoded_otherwise.images == 0
        assert report.from_files.images == FILES[name]
