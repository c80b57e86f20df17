"""Good files of every sort, made once: runs, a bundle, embeddings, exports, manifests, weights, caches."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.checksums import keep_checksum

NETWORK = ["backbone=residual", "backbone.name=cifar_resnet20", "input.size=32"]
SMALL = [
    *NETWORK,
    "backbone.weights=none",
    "data.num_workers=0",
    "data.batch_size=8",
    "logger=none",
    "trainer.precision=32-true",
    "report=false",
]
DATA = ["data=folder", "data.root=data"]
# with the checkpoints that resume reads
TRAIN = [*DATA, *SMALL, "keep=all", "schedule=head_then_all"]
TRAIN += ["schedule.phases.0.epochs=1", "schedule.phases.1.epochs=1"]


def make_material(root: Path) -> None:
    """Fill a folder; afterwards every case copies what it needs of it.

    Raises:
        AssertionError: A command failed on good files.
    """
    from finetune.cli import main
    from finetune.data import pillow_resize

    # two parts instead of eight: the exported file opens as any other, and is made in half the time
    pillow_resize._PARTS = 2
    root.mkdir(parents=True)
    os.chdir(root)
    _images(root / "data")
    (root / "pool").mkdir()
    Image.linear_gradient("L").resize((40, 36)).save(root / "pool" / "0.png")
    (root / "outside").mkdir()
    (root / "outside" / "private.csv").write_text("nothing of yours\n")

    def run(*words: str) -> None:
        assert main(list(words)) == 0, words

    run("train", *TRAIN, "run_dir=run")
    run("report", "run")
    _unfinish(root)
    _stop(root)
    _spare(root)
    for folder in ("run", "open", "stopped", "spare"):
        _take_along(root, folder)
    _tell_unknown(Path(shutil.copytree(root / "run" / "model", root / "bundle")))
    run("embed", "run", *DATA, "--output", "emb.npz", "--precision", "float32")
    run("embed", "run", *DATA, "--output", "emb.parquet", "--precision", "float32")
    run("embed", "run", *DATA, "--output", "white.npz", "--precision", "float32", "--whiten", "--directions", "4")
    run("export", "bundle", "--format", "onnx", "--images", "data", "--check", "4", "--output", "model.onnx")
    run("export", "spare", "--format", "head", "--images", "data", "--check", "4")
    run("export", "bundle", "--format", "head", "--images", "data", "--check", "4", "--output", "head.safetensors")
    run(
        "export",
        "bundle",
        "--format",
        "backbone",
        "--images",
        "data",
        "--check",
        "4",
        "--output",
        "weights.safetensors",
    )
    _lists(root)
    _sweep(root)
    _weights(root)
    _hub_folders(root)
    run("ladder", *DATA, *SMALL, "--rungs", "frozen,probe", "--epochs", "1", "--seeds", "1", "--output", "ladder")


def _hub_folders(root: Path) -> None:
    """Weights in the hub's layout, with timm's description of the input and with transformers'."""
    described = {
        "hub": ("config.json", {"pretrained_cfg": {"input_size": [3, 32, 32], "interpolation": "bilinear"}}),
        "processor": ("preprocessor_config.json", {"size": {"height": 32, "width": 32}, "resample": 2}),
    }
    for folder, (name, values) in described.items():
        (root / folder).mkdir()
        (root / folder / name).write_text(json.dumps(values))
        shutil.copy(root / "weights.safetensors", root / folder / "model.safetensors")


def _images(root: Path) -> None:
    draw = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for image in range(10):
            pixels = draw.normal(90 + 60 * number, 40, (36, 36 + image % 3, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{image}.png")


def _tell_unknown(bundle: Path) -> None:
    """Give a bundle a score of unknown images and curves, for which the run has too few images."""
    from finetune.bundle import UNKNOWN_TENSORS, file_sha256, json_sha256, load_bundle
    from finetune.safetensors_writer import write_tensors
    from tests.export.trained import tell_unknown

    model = tell_unknown(load_bundle(bundle))
    assert model.unknown is not None
    assert model.selective is not None
    write_tensors(bundle / UNKNOWN_TENSORS, model.unknown.tensors())
    values = json.loads((bundle / "model.json").read_text())
    values["unknown"] = {"sha256": file_sha256(bundle / UNKNOWN_TENSORS)}
    values["selective"] = model.selective.to_plain()
    assert model.conformal is not None
    values["conformal"] = model.conformal.to_plain()
    (bundle / "model.json").write_text(json.dumps(values | {"sha256": json_sha256(values)}))


def _take_along(root: Path, folder: str) -> None:
    """Have a run look for its data beside it: every case has a copy of both."""
    for path in (root / folder / "config.yaml", root / folder / "run.json"):
        path.write_text(path.read_text().replace(str(root / "data"), "data"))
    keep_checksum(root / folder / "run.json")


def _spare(root: Path) -> None:
    """A finished run that holds what may be deleted, as one killed at its end does."""
    run = Path(shutil.copytree(root / "run", root / "spare"))
    (run / "movement.json").write_text("[]\n")
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("keep: all", "keep: results").replace("run_dir: run", "run_dir: spare")
    )


def _unfinish(root: Path) -> None:
    """A run that was stopped after the last epoch of its second phase."""
    run = Path(shutil.copytree(root / "run", root / "open"))
    for path in (
        run / "results.json",
        run / "final.safetensors",
        run / "evaluation.safetensors",
        run / "predictions.csv",
    ):
        path.unlink()
    for path in run.glob("phases/1-*/result.json"):
        path.unlink()
    shutil.rmtree(run / "model")
    # where the run lies is in its configuration
    for path in (run / "config.yaml", run / "run.json"):
        path.write_text(
            path.read_text().replace("run_dir: run", "run_dir: open").replace('"run_dir": "run"', '"run_dir": "open"')
        )


def _stop(root: Path) -> None:
    """A run that was stopped after the first of two epochs of its second phase, from where Lightning goes on."""
    from finetune.cli import main
    from finetune.training.callbacks.checkpoints import PhaseCheckpoints

    whole = PhaseCheckpoints.on_train_epoch_end

    def stop(self: Any, trainer: Any, module: Any) -> None:
        whole(self, trainer, module)
        if module.phase_number == 1:
            raise KeyboardInterrupt

    PhaseCheckpoints.on_train_epoch_end = stop  # type: ignore[method-assign]
    try:
        status = main(["train", *TRAIN, "schedule.phases.1.epochs=2", "run_dir=stopped"])
    finally:
        PhaseCheckpoints.on_train_epoch_end = whole  # type: ignore[method-assign]
    assert status == 130
    assert not (root / "stopped" / "phases" / "1-all" / "result.json").exists()


def _lists(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((root / "data").rglob("*.png"))
    paths = [str(file.relative_to(root)) for file in files]
    labels = [file.parent.name for file in files]
    splits = [("train", "train", "train", "val", "test")[number % 5] for number in range(len(files))]
    lines = ["path,label,split", *(",".join(row) for row in zip(paths, labels, splits, strict=True))]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    (root / "list.tsv").write_text("\n".join(line.replace(",", "\t") for line in lines) + "\n")
    (root / "list.txt").write_text("\n".join(paths) + "\n")
    (root / "rename.csv").write_text("old,new\ncat,tom\n")
    pq.write_table(pa.table({"path": paths, "label": labels, "split": splits}), root / "list.parquet")


def _sweep(root: Path) -> None:
    """A sweep of one job."""
    from finetune.commands.jobs import JobRecord
    from finetune.plain import to_plain

    for name in ("results.json", "run.json"):
        (root / "sweep" / "0").mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "run" / name, root / "sweep" / "0" / name)
    keep_checksum(root / "sweep" / "0" / "results.json")
    record = JobRecord(job=0, overrides=("seed=0",), run_dir="sweep/0", monitor="val/acc", status="running")
    (root / "sweep" / "jobs").mkdir()
    (root / "sweep" / "jobs" / "0.json").write_text(json.dumps(to_plain(record)))


def _weights(root: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(root / "weights.safetensors")}, root / "weights.pth")
    json.loads((root / "run" / "results.json").read_text())
