import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from finetune.data.decode import DecodeOptions
from finetune.data.transforms import eval_view
from finetune.export.formats.torch_export import export_torch
from finetune.export.onnx import export_onnx
from finetune.export.quantize import quantise_onnx
from finetune.models.classifier import Classifier
from tests.export.odd_files import write_files
from tests.export.pictures import CLASSES, picture
from tests.export.trained import settled_classifier

pytestmark = pytest.mark.usefixtures("resized_in_two_parts")


@pytest.fixture(scope="module")
def model() -> Classifier:
    return settled_classifier(name="resnet10t", size=(32, 32))


@pytest.fixture(scope="module")
def exported(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, path)
    return path


@torch.no_grad()
def expected(model: Classifier, images: torch.Tensor) -> npt.NDArray[np.float32]:
    view = eval_view(model.input_spec)
    return model(torch.stack([view(image) for image in images])).softmax(1).numpy()


def batch(count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([picture(n % 5, channels=3, size=size, generator=generator) for n in range(count)])


@pytest.mark.parametrize(("count", "size"), [(1, (32, 32)), (3, (77, 50)), (2, (20, 133)), (5, (37, 37))])
def test_any_batch_of_any_size_gives_the_probabilities_of_the_trained_model(
    model: Classifier, exported: Path, count: int, size: tuple[int, int]
) -> None:
    images = batch(count, size)
    session = onnxruntime.InferenceSession(str(exported))
    (found,) = session.run(None, {"images": images.permute(0, 2, 3, 1).contiguous().numpy()})
    assert np.abs(found - expected(model, images)).max() < 1e-5


def test_it_is_one_file_with_named_axes_class_names_and_provenance(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(exported))
    assert session.get_inputs()[0].shape == ["batch", "height", "width", 3]
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_outputs()[0].shape == ["batch", len(CLASSES)]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["finetune"])["input"]["crop_pct"] == pytest.approx(0.95, abs=0.1)


def test_channels_may_come_first_and_be_five(tmp_path: Path) -> None:
    model = settled_classifier(name="resnet10t", channels=5, adapt="tile", size=(32, 32))
    export_onnx(model, tmp_path / "five.onnx", layout="nchw")
    image = torch.randint(0, 256, (2, 5, 48, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(tmp_path / "five.onnx"))
    assert np.abs(session.run(None, {"images": image.numpy()})[0] - expected(model, image)).max() < 1e-5


def test_half_and_eight_bits_are_smaller_and_stay_within_their_bounds(
    model: Classifier, exported: Path, tmp_path: Path
) -> None:
    files = write_files(tmp_path, 40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "half.onnx", half=True)
    # exporting leaves the model as it was
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    quantise_onnx(exported, tmp_path / "int8.onnx", files=files, layout="nhwc", decode_options=DecodeOptions())
    images = batch(20, (48, 60), seed=7)
    wanted = expected(model, images)
    sizes = {path: Path(path).stat().st_size for path in (exported, tmp_path / "half.onnx", tmp_path / "int8.onnx")}
    assert sizes[tmp_path / "half.onnx"] < 0.55 * sizes[exported]
    assert sizes[tmp_path / "int8.onnx"] < 0.3 * sizes[exported]
    for name, most in (("half.onnx", 1e-2), ("int8.onnx", 0.1)):
        session = onnxruntime.InferenceSession(str(tmp_path / name))
        (found,) = session.run(None, {"images": images.permute(0, 2, 3, 1).contiguous().numpy()})
        assert 0 < np.abs(found - wanted).max() < most
    assert json.loads(session.get_modelmeta().custom_metadata_map["finetune"])["precision"] == "int8"


def test_the_pt2_file_gives_the_same_bits_on_another_size_and_holds_the_class_names(
    model: Classifier, tmp_path: Path
) -> None:
    export_torch(model, tmp_path / "model.pt2")
    extra = {"finetune.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    images = batch(3, (61, 90))
    found = program(images.permute(0, 2, 3, 1).contiguous()).detach().numpy()
    assert np.abs(found - expected(model, images)).max() < 1e-6
    assert json.loads(extra["finetune.json"])["classes"] == list(CLASSES)
