import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.errors import UserError
from finetune.export.formats.timm import export_timm
from finetune.export.formats.torchvision import export_torchvision
from finetune.export.formats.transformers import export_transformers
from finetune.export.library_formats import colour_stem
from finetune.models.classifier import Classifier
from finetune.report.loading_snippets import how_to_load
from tests.export.pictures import CLASSES
from tests.export.trained import settled_classifier

GREY = (0.5, 0.5, 0.5)


@torch.no_grad()
@pytest.mark.parametrize("adapt", ["fold", "sum", "reinit"])
def test_a_stem_of_one_channel_is_written_as_a_stem_of_three_that_computes_the_same(adapt: str) -> None:
    model = settled_classifier(name="resnet18", channels=1, adapt=adapt).double()
    conv = model.backbone.net.get_submodule("conv1")
    with torch.no_grad():
        conv.weight += 0.01 * torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 1, 33, 47, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = conv(model.prepare(images))
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (model.input_spec.mean, model.input_spec.std))
    theirs = torch.nn.functional.conv2d(
        (images - mean) / std, colour_stem(model, "conv1"), stride=conv.stride, padding=conv.padding
    )
    assert (ours - theirs).abs().max() < 1e-9


def test_a_folded_stem_is_refused_where_no_colour_stem_computes_the_same(tmp_path: Path) -> None:
    model = settled_classifier(name="resnet18", channels=1, adapt="fold", mean=GREY, std=GREY)
    with torch.no_grad():
        model.backbone.net.get_submodule("conv1").weight[:, 1] += 0.1
    for write in (export_timm, export_torchvision, export_transformers):
        with pytest.raises(UserError, match=r"--format \w+: .*cannot hold the folded stem.*--format onnx"):
            write(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "write", "why"),
    [
        ({"head": "cosine"}, export_timm, "this head is 'cosine'"),
        ({"head": "mlp"}, export_torchvision, "this head is 'mlp'"),
        ({"name": "resnet10t"}, export_torchvision, "torchvision has no matching layout for 'resnet10t'"),
        ({"name": "resnet10t"}, export_transformers, "this network is 'resnet10t'"),
        ({"name": "resnet18", "channels": 5, "adapt": "tile"}, export_timm, "This network takes 5"),
        ({"name": "resnet18", "size": (32, 48)}, export_torchvision, "cannot cover a crop of 32 x 48 pixels"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused_with_the_way_out(
    tmp_path: Path, settings: dict[str, Any], write: Callable[[Classifier, Path], None], why: str
) -> None:
    with pytest.raises(UserError, match=why) as refusal:
        write(settled_classifier(**settings), tmp_path)
    assert "Use --format onnx or --format torch_export" in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_class_names_and_the_whole_preparation_are_in_each_folder(tmp_path: Path) -> None:
    model = settled_classifier(size=(32, 32), interpolation="bicubic", crop_pct=0.9)
    for write in (export_timm, export_torchvision, export_transformers):
        write(model, tmp_path)
        described = json.loads((tmp_path / "config.json").read_text()) if write is not export_torchvision else {}
        if write is export_timm:
            cfg = described["pretrained_cfg"]
            assert described["label_names"] == list(CLASSES)
            assert (cfg["crop_pct"], cfg["interpolation"], cfg["input_size"]) == (0.9, "bicubic", [3, 32, 32])
        elif write is export_transformers:
            assert list(described["id2label"].values()) == list(CLASSES)
            assert described["pretrained_cfg"]["crop_pct"] == 0.9
            steps = json.loads((tmp_path / "without_timm" / "preprocessor_config.json").read_text())
            assert (steps["size"], steps["resample"]) == ({"shortest_edge": 35}, 3)
        else:
            told = json.loads((tmp_path / "classes.json").read_text())
            assert told["classes"] == list(CLASSES)
            assert told["preprocessing"]["resize"] == [35, 35]


@pytest.mark.parametrize(
    ("form", "write"),
    [("timm", export_timm), ("torchvision", export_torchvision), ("transformers", export_transformers)],
)
def test_the_code_to_copy_names_all_of_many_labels(
    form: str, write: Callable[[Classifier, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"Käfer {number}" for number in range(7))
    model = settled_classifier(classes=names)
    # more labels than the five that a pipeline returns by itself, and not all
    model.multi_label, model.thresholds = True, (0.0,) * 6 + (0.9999,)
    write(model, tmp_path)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save("photo.png")
    section = how_to_load(form, model.input_spec, path=str(tmp_path), multi_label=True)
    code = section.partition("```python\n")[2].partition("```")[0].replace("photo.jpg", "photo.png")
    printed: list[Any] = []
    exec(code, {"print": printed.append})  # what a user would paste
    shown = [row["label"] if isinstance(row, dict) else row for row in printed[0]]
    assert sorted(shown) == list(names[:6])
