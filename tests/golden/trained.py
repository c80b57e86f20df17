"""What is done with a trained run: evaluation, predictions, embeddings, exports, and the same from Python."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.golden.case import Case, Place, said
from tests.golden.digests import array_digest, flattened, normalized, tensors_digest

TINY = (
    "backbone=timm",
    "backbone.name=resnet10t",
    "backbone.weights=none",
    "input.size=32",
    "data.num_workers=0",
    "data.batch_size=8",
    "logger=none",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "report=false",
)
_SHORT = ("schedule=head_then_all", "schedule.phases.0.epochs=1", "schedule.phases.1.epochs=1", "schedule.lr=0.01")

# trained before the cases that need them
RUNS: dict[str, tuple[str, ...]] = {
    "colour": ("data=folder", "data.root={work}/pets", *TINY, *_SHORT),
    "grey": ("data=folder", "data.root={work}/grey", *TINY, *_SHORT, "input.channels=1", "input.adapt=fold"),
}


def prepare(name: str, work: Path) -> None:
    """Train a run that cases need.

    Raises:
        RuntimeError: It failed.
    """
    folder = work / "runs" / name
    folder.mkdir(parents=True)
    answer = Place(work, folder).run(*RUNS[name], "run_dir=run")
    if answer.status:
        raise RuntimeError(f"the run {name} failed: {answer.err}")


def _own(run: str, place: Place) -> str:
    """A copy of a run for one case, which may write into it; moved here, it still knows where its data is."""
    shutil.copytree(place.work / "runs" / run / "run", place.folder / "run")
    return "run"


def _evaluate(run: str, place: Place) -> dict[str, str]:
    own = place.run("evaluate", _own(run, place), "--split", "all", "--output", "own.json")
    other = place.run("evaluate", "run", "data=folder", "data.root={work}/split", "--output", "other.json")
    return {
        **{f"own {key}": value for key, value in said(own).items()},
        **{f"other {key}": value for key, value in said(other).items()},
        "own.json": _json(place, "own.json"),
        "other.json": _json(place, "other.json"),
    }


def _json(place: Place, name: str) -> str:
    path = place.folder / name
    return normalized(flattened(json.loads(path.read_text())), place.places) if path.exists() else "not written"


def _predict(run: str, place: Place) -> dict[str, str]:
    answer = place.run("predict", _own(run, place), "{work}/odd", "{work}/files", "--output", "p.csv", "--top-k", "2")
    lines = place.run("predict", "run", "{work}/files", "--output", "p.jsonl", "--batch-size", "3")
    return {
        **said(answer),
        "jsonl stdout": lines.out,
        "p.csv": place.text("p.csv"),
        "p.jsonl": place.text("p.jsonl"),
    }


def _embeddings(run: str, place: Place) -> dict[str, str]:
    commands = {
        "embed": ("embed", _own(run, place), "--output", "e.npz", "--precision", "float32"),
        "embed a stage": ("embed", "run", "{work}/files", "--output", "stage.npz", "--stage", "layer3", "--normalize"),
        "search": ("search", "e.npz", "{work}/files", "-k", "3", "--output", "found.csv"),
        "near": ("search", "e.npz", "--radius", "0.001", "--output", "near.csv"),
        "quality": ("search", "e.npz", "--quality", "--output", "quality.json"),
        "cluster": ("cluster", "e.npz", "--most-clusters", "5", "--output", "clusters"),
        "classify": ("classify", "e.npz", "--output", "classified"),
    }
    kept: dict[str, str] = {}
    for name, words in commands.items():
        kept |= {f"{name} {key}": value for key, value in said(place.run(*words)).items()}
    for name in ("e.npz", "stage.npz"):
        with np.load(place.folder / name, allow_pickle=False) as file:
            kept |= {f"{name} {key}": array_digest(file[key]) for key in ("features", "label", "split", "content")}
    for name in ("found.csv", "near.csv", "clusters/clusters.csv", "clusters/doubtful.csv", "clusters/manifest.csv"):
        kept[name] = place.text(name) if (place.folder / name).exists() else "not written"
    for name in ("quality.json", "clusters/summary.json"):
        kept[name] = _json(place, name)
    for path in sorted((place.folder / "classified").rglob("*.csv")):
        kept[str(path.relative_to(place.folder))] = normalized(path.read_text(), place.places)
    for path in sorted((place.folder / "classified").rglob("*.json")):
        kept[str(path.relative_to(place.folder))] = normalized(flattened(json.loads(path.read_text())), place.places)
    return {**kept, "written": place.written()}


def _python(run: str, place: Place) -> dict[str, str]:
    """Load, embed and search from Python."""
    import torch

    import finetune

    model = finetune.load(place.work / "runs" / run / "run")
    channels = model.input_spec.channels
    images = torch.randint(0, 256, (4, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(images)
    features = finetune.embed(model, images)
    neighbours = finetune.search(features, features, 3)
    return {
        "classes": repr(model.classes),
        "input": repr(model.input_spec),
        "logits": array_digest(logits.numpy()),
        "features": array_digest(np.asarray(features.features)),
        "neighbours": array_digest(np.asarray(neighbours.rows)),
    }


def _pictures(place: Place, *, grey: bool) -> dict[str, npt.NDArray[np.uint8]]:
    """Pixels (1, H, W, C) of the files that Pillow and we read alike, and of all odd images that a person can read."""
    from PIL import Image

    from tests.data.odd_images import odd_images

    pictures = {}
    for path in sorted((place.work / "files").iterdir()):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
        pictures[path.name] = (pixels[..., None] if grey else pixels)[None]
    for odd in odd_images():
        if odd.expected is not None:
            pixels = odd.expected.astype(np.uint8)
            pictures[odd.name] = np.ascontiguousarray(pixels[None, ..., :1] if grey else pixels[None])
    return pictures


def _onnx(run: str, place: Place) -> dict[str, str]:
    import onnxruntime

    answer = place.run("export", _own(run, place), "--format", "onnx", "--check", "4")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(place.folder / "run/exports/model.onnx"), settings)
    pictures = _pictures(place, grey=run == "grey")
    found = {name: array_digest(session.run(None, {"images": pixels})[0]) for name, pixels in pictures.items()}
    return {**said(answer), **found, "written": place.written()}


def _pt2(run: str, place: Place) -> dict[str, str]:
    import torch

    answer = place.run("export", _own(run, place), "--format", "torch_export", "--check", "4")
    program = torch.export.load(place.folder / "run/exports/model.pt2").module()
    pictures = _pictures(place, grey=run == "grey")
    with torch.inference_mode():
        found = {
            name: array_digest(program(torch.from_numpy(pixels.copy())).numpy()) for name, pixels in pictures.items()
        }
    return {**said(answer), **found, "written": place.written()}


def _export(form: str, place: Place) -> dict[str, str]:
    """Export in a form that is files of weights and settings."""
    answer = place.run("export", _own("colour", place), "--format", form, "--check", "4")
    files = sorted((place.folder / "run/exports").rglob("*.safetensors"))
    weights = {str(path.relative_to(place.folder)): tensors_digest(path) for path in files}
    return {**said(answer), **weights, "written": place.written()}


def cases() -> list[Case]:
    """All of them."""
    made = []
    for run in RUNS:
        needs = (run,)
        made += [
            Case("evaluate", run, partial(_evaluate, run), needs=needs, quick=run == "colour"),
            Case("predict", run, partial(_predict, run), needs=needs, quick=run == "colour"),
            Case("embed", run, partial(_embeddings, run), needs=needs, quick=run == "colour"),
            Case("python", run, partial(_python, run), needs=needs, quick=run == "colour"),
            Case("export", f"onnx, {run}", partial(_onnx, run), needs=needs, quick=False),
            Case("export", f"torch_export, {run}", partial(_pt2, run), needs=needs, quick=False),
        ]
    quick = ("head", "backbone")
    made += [
        Case("export", form, partial(_export, form), needs=("colour",), quick=form in quick)
        for form in (*quick, "timm", "web")
    ]
    return made
