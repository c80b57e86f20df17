"""How long the report of a large test set takes beyond prediction, and how large it is.

    uv run python tests/benchmarks/report_speed.py

Makes 100 classes of photographs' size (one dominant colour a class, noise, JPEG), 100 test images each, trains the head of an
untrained network on a few of them, and times ``write_report`` alone: what it needs of the network's answers was kept by the
run. The pictures of mistakes are decoded and Grad-CAM is computed, as in any report.

Measured on two shared cores under a load of four, one thread, ResNet-18 at 64 pixels: 10.1 and 16.8 s, 1.7 MB.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.config import compose
from finetune.runners.train import train


def write_photographs(folder: Path, *, classes: int, counts: dict[str, int], side: int) -> None:
    """``DIR/<split>/<class>/*.jpg``."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(classes):
            place = folder / split / f"class {number:03}"
            place.mkdir(parents=True)
            hue = np.random.default_rng(number).integers(40, 200, 3)
            for image in range(count):
                coarse = random.normal(hue, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(coarse).resize((side, side)).save(place / f"{image}.jpg", quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--test", type=int, default=100, help="test images a class")
    parser.add_argument("--side", type=int, default=320, help="of the files, in pixels")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        write_photographs(
            data, classes=given.classes, counts={"train": 4, "val": 10, "test": given.test}, side=given.side
        )
        words = ["data=folder", f"data.root={data}", "backbone=resnet18", "backbone.weights=none", "input.size=64"]
        words += ["schedule=frozen", "schedule.phases.0.epochs=1", "schedule.lr=0.01", "report=false", "logger=none"]
        began = time.perf_counter()
        train(compose([*words, f"run_dir={run}"]))
        print(f"run without the report: {time.perf_counter() - began:.1f} s")
        from finetune.build.data import build_source
        from finetune.config import from_yaml

        source = build_source(from_yaml(run / "config.yaml"))
        began = time.perf_counter()
        from finetune.report.run_page import write_report

        page = write_report(run, source)
        seconds = time.perf_counter() - began
        print(
            f"report of {len(source.index.rows('test')):,} test images: {seconds:.1f} s, {page.stat().st_size:,} bytes"
        )


if __name__ == "__main__":
    main()
