"""Files made to do harm, against every command: nothing runs, nothing is written elsewhere, each gets its message."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune.cli import COMMANDS as EVERY_COMMAND
from finetune.cli import main
from finetune.errors import UserError
from finetune.report.model_card import model_card
from finetune.training.callbacks.checkpoints import read_checkpoint
from tests.bundles import small_bundle
from tests.conftest import TINY
from tests.export.odd_files import write_files
from tests.export.trained import settled_classifier
from tests.imaginary_results import imaginary_results
from tests.runs import train_tiny

COMMANDS = {
    "predict": ["IMAGES", "--output", "OUT/p.csv"],
    "pick": ["IMAGES", "-n", "1", "--output", "OUT/p.csv"],
    "export": ["--format", "timm", "--images", "IMAGES", "--output", "OUT/timm"],
    "evaluate": ["data=folder", "data.root=IMAGES"],
    "serve": ["--port", "0"],
    "embed": ["IMAGES", "--output", "OUT/e.npz"],
}
# these open other files of a run than its bundle; their pickles have tests of their own below
APART = {"resume", "report", "grow"}


class Payload:
    """What a pickle can do when it is read: here it only leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("clean") / "model", size=(32, 32))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("cat", "dog"):
        (root / name).mkdir()
        write_files(root / name, 12)
    return root


@pytest.fixture(scope="module")
def one_run(pets, tmp_path_factory):
    words = ["data=folder", f"data.root={pets}", *TINY, "schedule=frozen", "schedule.phases.0.epochs=1"]
    return train_tiny(words, tmp_path_factory.mktemp("one") / "run").run_dir


@pytest.fixture
def bundle(clean, tmp_path):
    return Path(shutil.copytree(clean, tmp_path / "run"))


@pytest.fixture
def mark(tmp_path):
    """A folder that exists once a payload has run."""
    return tmp_path / "EXECUTED"


def pickles(mark):
    """Every shape a pickle can have where a weight is expected."""
    plain, protocol0 = pickle.dumps(Payload(mark)), pickle.dumps(Payload(mark), protocol=0)
    archive = io.BytesIO()
    torch.save({"state_dict": {"conv1.weight": Payload(mark)}}, archive)
    legacy = io.BytesIO()
    torch.save({"fc.weight": Payload(mark)}, legacy, _use_new_zipfile_serialization=False)
    return {"plain": plain, "protocol0": protocol0, "zip": archive.getvalue(), "legacy": legacy.getvalue()}


def run(words, *, images, out):
    words = [word.replace("IMAGES", str(images)).replace("OUT", str(out)) for word in words]
    return main(words)


def refused(capsys, command, folder, images, tmp_path, *, says):
    """The command ends as a user's mistake, in words, and leaves nothing."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    assert run([command, str(folder), *COMMANDS[command]], images=images, out=out) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not list(out.iterdir())


def test_every_command_that_opens_a_model_is_in_this_corpus(capsys):
    opens = set()
    for name in EVERY_COMMAND:
        assert main([name, "--help"]) == 0
        usage = capsys.readouterr().out.split("\n\n")[0]
        if "RUN" in usage.split():
            opens.add(name)
    assert opens - APART == set(COMMANDS), "add the new command to COMMANDS, with words that make it open RUN"


def test_the_payload_would_run_if_it_were_unpickled(mark):
    pickle.loads(pickle.dumps(Payload(mark)))  # the corpus must be able to do harm, else it proves nothing
    assert mark.exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_pickle_in_the_place_of_a_file_of_the_bundle(capsys, bundle, images, tmp_path, mark, command, name):
    for content in pickles(mark).values():
        (bundle / name).write_bytes(content)
        refused(capsys, command, bundle, images, tmp_path, says=name)
    assert not mark.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pickle_whose_hash_the_description_names(capsys, bundle, images, tmp_path, mark, command):
    import hashlib

    content = pickles(mark)["zip"]
    (bundle / "model.safetensors").write_bytes(content)
    change(bundle, lambda values: values.update(weights_sha256=hashlib.sha256(content).hexdigest()))
    refused(capsys, command, bundle, images, tmp_path, says="model.safetensors: not a safetensors file")
    assert not mark.exists()


@pytest.mark.parametrize("setting", ["backbone.weights", "head.weights"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ".bin"])
def test_a_pickle_as_a_weight_to_start_from(capsys, images, tmp_path, mark, setting, suffix):
    for kind, content in pickles(mark).items():
        path = tmp_path / f"{kind}{suffix}"
        path.write_bytes(content)
        words = ["train", "data=folder", f"data.root={images}", "backbone=timm", "backbone.name=resnet10t"]
        words += ["input.size=32", f"run_dir={tmp_path / 'new'}", f"{setting}={path}"]
        words += ["backbone.weights=none"] if setting == "head.weights" else []
        assert main(words) == 2
        said = capsys.readouterr().err
        assert str(path) in said
        assert "cannot be read as plain tensors" in said or "not a safetensors file" in said
    assert not mark.exists()
    assert not (tmp_path / "new").exists()


def test_a_pickle_as_a_checkpoint_of_a_run(tmp_path, mark):
    for kind, content in pickles(mark).items():
        (tmp_path / f"{kind}.ckpt").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a checkpoint of tensors and plain values"):
            read_checkpoint(tmp_path / f"{kind}.ckpt")
    assert not mark.exists()


def test_a_pickle_in_the_place_of_a_file_that_a_report_is_made_of(capsys, one_run, tmp_path, mark):
    names = [
        "results.json",
        "plan.json",
        "evaluation.safetensors",
        "final.safetensors",
        "phases/0-head/start.safetensors",
    ]
    for name in names:
        run = Path(shutil.copytree(one_run, tmp_path / "run"))
        assert (run / name).is_file()
        (run / name).write_bytes(pickles(mark)["plain"])
        assert main(["report", str(run)]) in (0, 2)  # weights at a start are shown where they can be read
        assert "Traceback" not in capsys.readouterr().err
        shutil.rmtree(run)
    assert not mark.exists()


def test_an_onnx_file_that_is_a_pickle(capsys, images, tmp_path, mark):
    for kind, content in pickles(mark).items():
        (tmp_path / f"{kind}.onnx").write_bytes(content)
        refused(
            capsys, "predict", tmp_path / f"{kind}.onnx", images, tmp_path, says="cannot be opened as an ONNX model"
        )
    assert not mark.exists()


def change(bundle, how):
    path = bundle / "model.json"
    values = json.loads(path.read_text())
    how(values)
    # who writes a hostile file writes its digest too, or leaves it out
    values.pop("sha256", None)
    path.write_text(json.dumps(values))


DESCRIPTIONS = {
    "reads a pickle": (
        lambda v: v["model"]["backbone"]["kwargs"].update(checkpoint_path="/tmp/evil.pth"),
        "checkpoint_path would read files or the network",
    ),
    "fetches": (
        lambda v: v["model"]["backbone"]["kwargs"].update(pretrained_cfg={"url": "http://localhost:9"}),
        "pretrained_cfg would read files or the network",
    ),
    "another source": (lambda v: v["model"]["backbone"].update(source="os"), "model.backbone.source: must be one of"),
    "a folder of timm": (lambda v: v["model"]["backbone"].update(name="local-dir:/etc"), "local-dir"),
    "a path of the hub": (
        lambda v: v["model"]["backbone"].update(source="transformers", name="../../etc"),
        "else it would be fetched",
    ),
    "unknown keywords": (lambda v: v["model"]["backbone"]["kwargs"].update(evil=1), "evil"),
    "a vast head": (lambda v: v["model"]["head"].update(num_features=10**12), "sizes must be whole numbers"),
    "classes that are no names": (lambda v: v["model"].update(classes=[1, 2, 3, 4, 5]), "different names"),
    "too few classes": (lambda v: v["model"].update(classes=["a", "b"]), "must be the number of classes"),
    "newer": (
        lambda v: v.update(format=99, versions={"finetune": "9.0"}),
        "format 99 is newer than this program reads",
    ),
    "a list": (lambda v: v.update(model=[]), "Missing or of the wrong type: model"),
    "a wrong input": (lambda v: v["model"]["input_spec"].update(std=[0, 0, 0]), "must be positive"),
    "no format": (lambda v: v.pop("format"), "no format number"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_description_that_lies_is_refused(capsys, bundle, images, tmp_path, case):
    how, says = DESCRIPTIONS[case]
    change(bundle, how)
    refused(capsys, "predict", bundle, images, tmp_path, says=says)


def test_json_nested_without_end_and_json_of_vast_size_are_refused(capsys, bundle, images, tmp_path):
    (bundle / "model.json").write_text("[" * 200_000)
    refused(capsys, "predict", bundle, images, tmp_path, says="model.json")
    with (bundle / "model.json").open("wb") as file:
        file.truncate(2**30)  # a sparse file: nothing is written
    refused(capsys, "predict", bundle, images, tmp_path, says="model.json: is too large for such a file")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_links_that_lead_out_of_the_bundle_are_refused(capsys, bundle, images, tmp_path, name):
    outside = tmp_path / "outside"
    shutil.move(bundle / name, outside)
    (bundle / name).symlink_to(outside)
    refused(capsys, "predict", bundle, images, tmp_path, says="leads out of the bundle")


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_that_are_not_finite_are_refused(capsys, bundle, images, tmp_path, command):
    from finetune.bundle import file_sha256

    state = load_file(bundle / "model.safetensors")
    state["head.fc.weight"][0, 0] = float("nan")
    save_file(state, bundle / "model.safetensors")
    change(bundle, lambda values: values.update(weights_sha256=file_sha256(bundle / "model.safetensors")))
    refused(capsys, command, bundle, images, tmp_path, says="not finite: head.fc.weight")


def test_a_safetensors_header_that_claims_more_than_the_file_has(capsys, images, tmp_path):
    for length in (2**62, 2**26):
        path = tmp_path / "bomb.safetensors"
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        words = ["train", "data=folder", f"data.root={images}", "backbone=resnet18", f"backbone.weights={path}"]
        assert main([*words, f"run_dir={tmp_path / 'new'}"]) == 2
        assert "not a safetensors file" in capsys.readouterr().err


def test_zip_and_pixel_bombs_as_images_become_rows_that_say_why(clean, tmp_path):
    folder = tmp_path / "bombs"
    folder.mkdir()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    start = b"\x89PNG\r\n\x1a\n"
    (folder / "pixels.png").write_bytes(
        start + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000), 9))
    small = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)) + text
    (folder / "text.png").write_bytes(start + small + chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b""))
    with zipfile.ZipFile(folder / "zip.png", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", bytes(50_000_000))
    Image.new("RGB", (8, 8)).save(folder / "ok.png")
    assert main(["predict", str(clean), str(folder), "--output", str(tmp_path / "p.jsonl")]) == 0
    rows = {Path(row["path"]).name: row for row in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    assert set(rows) == {"ok.png", "pixels.png", "text.png", "zip.png"}
    assert "60000 x 60000 pixels" in rows["pixels.png"]["error"]
    assert "ZIP archive" in rows["zip.png"]["error"]
    assert rows["ok.png"]["error"] == ""
    assert "Decompressed data too large" in rows["text.png"]["error"] or rows["text.png"]["predicted"]


def test_class_names_with_html_and_formulae_are_harmless_where_they_are_shown(tmp_path, images):
    names = ("<script>alert(1)</script>", "=1+1", "a|b\n# c", "[x](javascript:y)", "\x1b[31mred")
    model = settled_classifier(name="resnet10t", size=(32, 32), classes=names)
    # every class is taken for another once, so that each name is among the mistakes too
    card = model_card(
        model, imaginary_results([[int(column == (row + 1) % 5) for column in range(5)] for row in range(5)])
    )
    assert "<script>" not in card
    assert "\x1b" not in card
    assert "](javascript" not in card
    bundle = small_bundle(tmp_path / "run", model)
    assert main(["predict", str(bundle), str(images), "--output", str(tmp_path / "p.csv"), "--top-k", "5"]) == 0
    cells = (tmp_path / "p.csv").read_text().replace('"', "").split(",")
    assert "'=1+1" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]


def test_an_output_is_written_where_it_was_asked_for_and_nowhere_else(clean, images, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in clean.rglob("*")}
    (tmp_path / "here").mkdir()
    assert main(["predict", str(clean), str(images), "--output", str(tmp_path / "here" / "p.csv")]) == 0
    assert {path: path.stat().st_mtime_ns for path in clean.rglob("*")} == before
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "p.csv"]
