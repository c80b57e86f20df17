import csv
import resource
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from finetune.cli import main
from finetune.data.decode import DecodeOptions
from finetune.data.transforms import eval_view
from finetune.errors import UserError
from finetune.export.onnx import export_onnx
from finetune.inference.onnx_engine import OnnxEngine
from tests.bundles import small_bundle
from tests.export.odd_files import write_files
from tests.export.trained import settled_classifier

# Pillow reports damaged metadata by UserWarnings; decode.py silences them, but pytest resets the filters
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.usefixtures("resized_in_two_parts"),
]


@pytest.fixture(scope="module")
def model():
    return settled_classifier(name="resnet10t", size=(32, 32))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The model as an ONNX file, which no test changes."""
    path = tmp_path_factory.mktemp("engine") / "model.onnx"
    export_onnx(model, path)
    return path


def test_the_command_predicts_with_an_onnx_file_as_with_the_run_and_never_imports_torch(tmp_path, model, exported):
    bundle = small_bundle(tmp_path / "run", model)
    (tmp_path / "images").mkdir()
    write_files(tmp_path / "images", 12)
    # resized without regard to the crop, each would take ten gigabytes
    Image.new("1", (1, 1_000_000)).save(tmp_path / "images" / "high.png")
    Image.new("1", (1_000_000, 1)).save(tmp_path / "images" / "wide.png")
    script = (
        "import sys; from finetune.cli import main; from pathlib import Path; code = main(sys.argv[1:]);"
        # not getrusage, which would count the process that started this one
        "status = Path('/proc/self/status');"
        "lines = status.read_text().splitlines() if status.exists() else [];"
        "peak = sum(int(line.split()[1]) // 1024 for line in lines if line.startswith('VmHWM'));"
        "sys.exit(f'took {peak} MiB') if peak > 1000 else None;"
        "heavy = {'torch', 'torchvision', 'timm', 'lightning', 'onnx'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )

    def guarded(words):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.returncode

    tables = []
    for run, command in ((exported, guarded), (bundle, main)):
        output = tmp_path / f"{run.name}.csv"
        assert command(["predict", str(run), str(tmp_path / "images"), "--output", str(output)]) == 0
        tables.append(list(csv.DictReader(output.open(encoding="utf-8"))))
    for ours, theirs in zip(*tables, strict=True):
        assert ours["predicted"] == theirs["predicted"]
        assert abs(float(ours["probability"]) - float(theirs["probability"])) < 1e-4


@pytest.mark.parametrize(("interpolation", "crop_mode"), [("nearest", "center"), ("bicubic", "squash")])
def test_an_image_is_prepared_to_what_the_graph_makes_of_it_and_a_long_one_to_no_more(
    tmp_path, interpolation, crop_mode
):
    spec = {"interpolation": interpolation, "crop_mode": crop_mode, "crop_pct": 0.875}
    model = settled_classifier(name="resnet10t", size=(32, 32), **spec)
    export_onnx(model, tmp_path / "model.onnx", decode_options=DecodeOptions(max_pixels=1_000_000))
    engine, random = OnnxEngine(tmp_path / "model.onnx"), np.random.default_rng(0)
    side = 32 if crop_mode == "squash" else 36
    for size in ((32, 32), (36, 36), (77, 50), (200, 333), (5, 9), (1, 2000), (900, 2)):
        image_HWC = random.integers(0, 256, (*size, 3), np.uint8)
        (whole,) = engine.session.run(None, {"images": image_HWC[None]})
        prepared = engine.prepare(image_HWC)
        assert prepared.shape == (1, side, side, 3)
        assert np.array_equal(engine.classify([prepared]).probabilities_NK, whole), size
        with torch.inference_mode():
            view = eval_view(model.input_spec)(torch.from_numpy(image_HWC).permute(2, 0, 1))
            wanted = model(view[None]).softmax(1).numpy()
        assert np.abs(whole - wanted).max() < 1e-5, size
    Image.new("1", (1, 1_000_000)).save(tmp_path / "high.png")
    assert engine.read(str(tmp_path / "high.png")).nbytes == 3 * side * side
    uploaded = (tmp_path / "high.png").read_bytes()
    assert engine.read_bytes(uploaded, "upload", max_pixels=1_000_000).nbytes == 3 * side * side


def test_other_files_are_refused_with_what_they_are(tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(UserError, match="cannot be opened as an ONNX model"):
        OnnxEngine(tmp_path / "text.onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "other", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), str(tmp_path / "other.onnx"))
    with pytest.raises(UserError, match=r"not an ONNX file of finetune\. Its inputs: x"):
        OnnxEngine(tmp_path / "other.onnx")


def test_tensors_in_files_elsewhere_are_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(np.ones(1, np.float32).tobytes())
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(tmp_path / "secret"))
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "thief", values[:1], values[1:], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "thief.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="cannot be opened as an ONNX model"):
        OnnxEngine(tmp_path / "thief.onnx")


def test_an_onnx_file_with_a_loop_is_refused_before_it_is_computed(tmp_path):
    helper, types = onnx.helper, onnx.TensorProto
    inside = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["x", "x"], ["y"])]
    taken = [("round", types.INT64, []), ("go", types.BOOL, []), ("x", types.FLOAT, [1])]
    body = helper.make_graph(
        inside,
        "body",
        [helper.make_tensor_value_info(*value) for value in taken],
        [helper.make_tensor_value_info("on", types.BOOL, []), helper.make_tensor_value_info("y", types.FLOAT, [1])],
    )
    loop = helper.make_node("Loop", ["rounds", "always", "x"], ["out"], body=body)
    # inside a branch of another operator, where a check of only the outermost graph would miss it
    given = [helper.make_tensor_value_info("out", types.FLOAT, [1])]
    branch = helper.make_graph([loop], "branch", [], given)
    graph = helper.make_graph(
        [helper.make_node("If", ["always"], ["out"], then_branch=branch, else_branch=branch)],
        "endless",
        [helper.make_tensor_value_info("x", types.FLOAT, [1])],
        given,
        [
            onnx.numpy_helper.from_array(np.array(2**60, np.int64), "rounds"),
            onnx.numpy_helper.from_array(np.array(True), "always"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="It holds Loop, which no export has"):
        OnnxEngine(tmp_path / "a.onnx")


def test_an_onnx_file_that_asks_for_memory_out_of_proportion_is_refused(tmp_path, exported):
    OnnxEngine(exported)
    model = onnx.load(str(exported))
    model.graph.initializer.extend([onnx.numpy_helper.from_array(np.array([4 * 2**30], np.int64), "shape")])
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("ConstantOfShape", ["shape"], ["vast"]),
            make("ReduceSum", ["vast"], ["sum"], keepdims=0),
            make("Add", ["before", "sum"], [output]),
        ]
    )
    onnx.save(model, str(tmp_path / "bomb.onnx"))
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(UserError, match=r"bomb\.onnx': cannot be computed\. "):
        OnnxEngine(tmp_path / "bomb.onnx")
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 12 * 2**20, "16 GB were never taken"
