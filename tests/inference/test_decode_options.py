"""Prediction reads images as training read them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.bundle import read_model_json
from finetune.cli import main
from finetune.data.decode import DecodeOptions, decode_file, to_tensor
from finetune.data.image_file import UnreadableImage
from finetune.errors import UserError
from finetune.inference.decode_options import decode_options_of
from finetune.inference.torch_engine import TorchEngine
from tests.bundles import small_bundle
from tests.conftest import TINY_RESNET10T
from tests.runs import train_tiny


@pytest.fixture(scope="module")
def microscope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16-bit images that use few of their bits: black unless stretched."""
    folder = tmp_path_factory.mktemp("microscope")
    random = np.random.default_rng(0)
    for name, low in (("bright", 150), ("dark", 0)):
        (folder / name).mkdir()
        for number in range(10):
            pixels = random.integers(low, low + 100, (24, 24)).astype(np.uint16)
            pixels[0, :2] = 0, 250  # the same range in every image
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run_dir(microscope: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [
        "data=folder",
        f"data.root={microscope}",
        "data.high_depth=stretch",
        "data.max_pixels=600",
        *TINY_RESNET10T,
    ]
    words += ["schedule=frozen", "schedule.phases.0.epochs=1"]
    return train_tiny(words, tmp_path_factory.mktemp("reading") / "run").run_dir


def test_the_bundle_says_how_images_are_read_and_prediction_follows(run_dir: Path, microscope: Path) -> None:
    assert decode_options_of(run_dir) == DecodeOptions(max_pixels=600, high_depth="stretch", channels=1)
    engine = TorchEngine(run_dir)
    path = str(microscope / "bright/0.png")
    stretched = decode_file(path, DecodeOptions(high_depth="stretch", channels=1), min_side=engine.view.min_side)
    assert torch.equal(engine.read(path), engine.view(to_tensor(stretched)))
    assert int(engine.read(path).max()) > 200


def test_an_image_too_large_for_training_is_too_large_for_prediction(run_dir: Path, tmp_path: Path) -> None:
    Image.new("L", (25, 25)).save(tmp_path / "large.png")
    with pytest.raises(UnreadableImage, match=r"more than data\.max_pixels=600"):
        TorchEngine(run_dir).read(str(tmp_path / "large.png"))


def test_other_data_is_evaluated_as_it_was_read_in_training(run_dir: Path, microscope: Path, tmp_path: Path) -> None:
    def loss(*words: str) -> float:
        output = tmp_path / "metrics.json"
        given = ["evaluate", str(run_dir / "model"), "data=folder", f"data.root={microscope}", *words]
        assert main([*given, "--output", str(output)]) == 0
        return float(json.loads(output.read_text())["loss"])

    assert loss() == loss("data.high_depth=stretch")
    assert loss() != loss("data.high_depth=full")


def test_a_bundle_that_does_not_tell_was_read_by_the_defaults(tmp_path: Path) -> None:
    assert decode_options_of(small_bundle(tmp_path / "bundle")).high_depth == "full"


@pytest.mark.parametrize("data", [{"high_depth": "half"}, {"max_pixels": 0}, {"max_pixels": True}])
def test_a_setting_out_of_range_is_damage(data: dict[str, object], tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "bundle")
    values = read_model_json(folder) | {"data": data}
    del values["sha256"]
    (folder / "model.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="out of range"):
        decode_options_of(folder)


@pytest.mark.usefixtures("resized_in_two_parts")
def test_an_onnx_export_reads_images_as_the_run_does(run_dir: Path, microscope: Path, tmp_path: Path) -> None:
    command = ["export", str(run_dir), "--format", "onnx", "--check", "4", "--output", str(tmp_path / "model.onnx")]
    assert main(command) == 0
    tables = []
    Image.new("L", (25, 25)).save(tmp_path / "large.png")
    for run in (run_dir, tmp_path / "model.onnx"):
        output = tmp_path / f"{run.name}.jsonl"
        words = ["predict", str(run), str(microscope / "bright"), str(tmp_path / "large.png"), "--output", str(output)]
        assert main(words) == 0
        tables.append([json.loads(line) for line in output.read_text().splitlines()])
    assert len(tables[0]) == 11
    for ours, theirs in zip(*tables, strict=True):
        assert ours["predicted"] == theirs["predicted"]
        if ours["probability"] is not None:
            assert abs(ours["probability"] - theirs["probability"]) < 1e-4
    assert all("more than data.max_pixels=600" in table[-1]["error"] for table in tables)
