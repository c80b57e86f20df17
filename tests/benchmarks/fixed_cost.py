"""What a run costs beside its training: sixty small images, the default schedule, the whole process timed from outside.

    uv run python tests/benchmarks/fixed_cost.py --rounds 5 [--python OTHER_ENVIRONMENT/bin/python ...]

Prints, for each Python given, the median and the range over the rounds of: the seconds of the process; those of its phases, as
``results.json`` has them; the difference, which is the fixed cost (imports, index, precision trial, test, bundle, report); the
seconds that importing what a run needs takes alone; and those of ``finetune --help``. The Pythons run in turn. The scan's and
the trial's caches are empty in the first run of a round (*first*) and kept for the second (*second*), as a user meets them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

_IMPORTS = "import torch, torchvision, lightning.pytorch, torchmetrics, timm"
_RUN = ("weights=embedded", "data.num_workers=0")


def make_images(folder: Path) -> None:
    """Thirty noisy images of 64 x 64 pixels in each of two classes that differ in brightness."""
    random = np.random.default_rng(0)
    for name, level in (("dark", 80), ("light", 150)):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            pixels = random.normal(level, 40, (64, 64, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg", quality=95)


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Run a command that must succeed; return its wall-clock time."""
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(python: str, data: Path, scratch: Path) -> dict[str, float]:
    """One round of one environment."""
    found = {}
    environment = {**os.environ, "FINETUNE_CACHE": str(scratch / "cache")}
    for which in ("first", "second"):
        run = scratch / which
        took = seconds([python, "-m", "finetune", str(data), *_RUN, f"run_dir={run}"], environment)
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        phases = sum(results["seconds"]["phases"].values())
        found |= {f"{which}: process": took, f"{which}: phases": phases, f"{which}: fixed": took - phases}
    found["imports"] = seconds([python, "-c", _IMPORTS], environment)
    found["help"] = seconds([python, "-m", "finetune", "--help"], environment)
    return found


def main() -> None:
    """Run the benchmark; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--python", nargs="+", default=[sys.executable], help="interpreters that have finetune installed"
    )
    given = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {python: [] for python in given.python}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_images(data)
        for _ in range(given.rounds):
            for python in given.python:
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    rows[python].append(measure(python, data, Path(scratch)))
    for python, rounds in rows.items():
        print(python)
        for name in rounds[0]:
            values = [one[name] for one in rounds]
            print(f"  {name:16} {median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
