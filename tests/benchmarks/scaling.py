"""What a frozen run costs against the number of images, of classes, the image size and the epochs: whole commands.

    uv run python tests/benchmarks/scaling.py

Images are a thousand JPEGs of 128 x 96 pixels, linked as often as needed; on each axis the other three stay as they are. The
cache is empty before every run, and the report is left out. Seconds that do not grow with an axis are start and end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

UNIQUE = 1000
USUAL = {"images": 2000, "classes": 10, "size": 64, "epochs": 5}
AXES = {
    "images": (1_000, 10_000, 100_000),
    "classes": (10, 100, 1_000, 10_000),
    "size": (64, 128, 224),
    "epochs": (1, 5, 20, 80),
}
# of them for each class, in training, validation and test
FEWEST_A_CLASS = 4


def make_unique(folder: Path) -> list[Path]:
    """Files to link to: smooth noise, as a photograph compresses."""
    folder.mkdir()
    random = np.random.default_rng(0)
    paths = []
    for number in range(UNIQUE):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((128, 96), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def make_folder(root: Path, paths: list[Path], *, images: int, classes: int) -> None:
    """``root/<class>/*``, the images dealt out to the classes in turn."""
    for name in range(classes):
        (root / f"{name:05}").mkdir(parents=True)
    for number in range(images):
        # no class is of copies of one image alone
        os.link(paths[(number + number // classes) % len(paths)], root / f"{number % classes:05}" / f"{number}.jpg")


def run(setting: dict[str, int], paths: list[Path], weights: str) -> dict[str, Any]:
    """One command, in a folder of its own: wall seconds, and those of the phase."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = max(setting["images"], FEWEST_A_CLASS * setting["classes"])
        make_folder(folder / "data", paths, images=images, classes=setting["classes"])
        words = ["data=folder", f"data.root={folder / 'data'}", "backbone=resnet18", f"backbone.weights={weights}"]
        words += ["schedule=frozen", f"schedule.phases.0.epochs={setting['epochs']}", f"input.size={setting['size']}"]
        words += ["report=false", f"run_dir={folder / 'run'}"]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "finetune", "train", *words],
            env={**os.environ, "FINETUNE_CACHE": str(folder / "cache")},
            capture_output=True,
            text=True,
        )
        wall = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(done.stderr)
        results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
        cache = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
        return {
            **setting,
            "images": images,
            "wall_s": wall,
            "phase_s": results["seconds"]["training"],
            "cache_bytes": cache,
        }


def main() -> None:
    """Every axis, and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--most", type=int, help="leave out larger values")
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        paths = make_unique(Path(name) / "unique")
        print("| axis | images | classes | px | epochs | process, s | phase, s | cache, MB |\n|" + "---|" * 8)
        for axis in told.axes:
            for value in AXES[axis]:
                if told.most and value > told.most:
                    continue
                row = {"axis": axis, **run(USUAL | {axis: value}, paths, told.weights)}
                rows.append(row)
                cells = [row["images"], row["classes"], row["size"], row["epochs"]]
                figures = [f"{row['wall_s']:.1f}", f"{row['phase_s']:.1f}", f"{row['cache_bytes'] / 1e6:.1f}"]
                print(f"| {axis} | {' | '.join(map(str, [*cells, *figures]))} |", flush=True)
    if told.json:
        told.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
