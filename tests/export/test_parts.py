import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.errors import RunError, UserError
from finetune.export import parts
from finetune.export.export import export_checked
from finetune.export.formats import FORMATS
from finetune.export.formats.kind import ExportJob, ExportRequest
from finetune.export.images import synthetic_images
from finetune.file_schema import PARITY, check_fields
from finetune.models.build import build_backbone
from finetune.models.classifier import Classifier, build_classifier
from finetune.plain import to_plain
from tests.export.pictures import CLASSES
from tests.export.trained import settled_classifier

CASES = [
    ("head", {"head": "mlp"}),
    ("head", {"head": "cosine", "classes": CLASSES[:3]}),
    ("backbone", {"name": "resnet10t", "channels": 1, "adapt": "fold"}),
    ("backbone", {"name": "resnet18", "source": "torchvision", "channels": 1, "adapt": "fold"}),
]


def model_of(settings: dict[str, Any]) -> Classifier:
    return settled_classifier(**{"name": "resnet10t", "size": (32, 32), **settings})


@pytest.mark.parametrize(("form", "settings"), CASES)
def test_a_part_computes_its_half_in_a_process_without_this_package(
    tmp_path: Path, form: str, settings: dict[str, Any]
) -> None:
    model = model_of(settings)
    images = synthetic_images(tmp_path, channels=model.input_spec.channels, count=6)
    target = tmp_path / "out" / f"{form}.safetensors"
    report = export_checked(
        ExportJob(classifier=model, request=ExportRequest(format=FORMATS[form]), images=images), target
    )
    check_fields(to_plain(report), PARITY, name="parity.json")
    assert report.passed
    assert report.from_pixels.images == 6
    assert report.from_pixels.largest < 1e-5
    assert sorted(path.name for path in target.parent.iterdir()) == [target.name, f"{target.name}.parity.json"]


def test_a_part_that_computes_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of({})
    write = parts.export_head

    def spoilt(classifier: Classifier, path: Path) -> None:
        write(classifier, path)
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        state = {
            key: value + 0.1 * torch.randn(value.shape) if value.is_floating_point() else value
            for key, value in load_file(path).items()
        }
        save_file(state, path, metadata=metadata)

    monkeypatch.setattr(parts, "export_head", spoilt)
    target = tmp_path / "out" / "part.safetensors"
    images = synthetic_images(tmp_path, channels=3, count=4)
    with pytest.raises(RunError, match="computes something different from the trained model, so it was deleted"):
        export_checked(
            ExportJob(classifier=model, request=ExportRequest(format=FORMATS["head"]), images=images), target
        )
    assert [path.name for path in target.parent.iterdir()] == ["part.safetensors.failed.parity.json"]
    assert not json.loads((target.parent / "part.safetensors.failed.parity.json").read_text())["passed"]


@pytest.mark.parametrize("pool", ["mean", "cls", "cls_mean"])
def test_a_pooling_is_in_what_is_exported_for_timm_or_refused(tmp_path: Path, pool: str) -> None:
    """DINOv2's norm stays before the pooling; timm's own constructor would put it behind a mean."""
    kwargs = {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3}
    backbone = build_backbone("vit_small_patch14_reg4_dinov2", weights="none", pool=pool, **kwargs)
    model = build_classifier(backbone, classes=CLASSES, size=(28, 28)).eval()
    images = synthetic_images(tmp_path, channels=3, count=4)
    for form in ("backbone", "timm"):
        job = ExportJob(classifier=model, request=ExportRequest(format=FORMATS[form]), images=images)
        if pool == "cls_mean" and form == "timm":
            with pytest.raises(UserError, match=r"timm has no backbone\.pool=cls_mean"):
                export_checked(job, tmp_path / form)
            continue
        report = export_checked(job, tmp_path / f"{form}.safetensors" if form == "backbone" else tmp_path / form)
        assert report.passed
        assert report.opened_by.startswith("none" if pool == "cls_mean" else "timm")
