"""What each way of caching a frozen network costs or gains in test accuracy, on real pictures with real pretrained weights.

    uv run python tests/benchmarks/cache_modes.py FOLDER... --name tf_efficientnet_lite0 --weights lite0.safetensors

Each FOLDER is an image folder with ``train`` and ``test``. The head of the frozen network is trained by the preset ``frozen`` for
some epochs; a line of JSON is printed for each data set and mode: mean test accuracy and test loss with standard errors, and the
mean difference to ``off`` (a new view every epoch), paired by seed.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from finetune.config import compose
from finetune.runners.train import train


def measure(folder: Path, mode: str, seed: int, given: argparse.Namespace) -> tuple[float, float]:
    """Test accuracy and test loss of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            "data=folder",
            f"data.root={folder}",
            "data.num_workers=0",
            "backbone=timm",
            f"backbone.name={given.name}",
            f"backbone.weights={given.weights}",
            f"input.size={given.size}",
            "schedule=frozen",
            f"schedule.epochs={given.epochs}",
            f"schedule.cache={mode}",
            "logger=none",
            "report=false",
            "trainer.precision=32-true",
            f"seed={seed}",
            f"run_dir={scratch}/run",
        ]
        test = train(compose(words)).results.test
        return float(test.acc), float(test.loss)


def mean_and_error(values: Sequence[float]) -> list[float]:
    """Mean and standard error."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return [round(mean, 4), round(math.sqrt(variance / len(values)), 4)]


def main() -> None:
    """Run the benchmark; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--name", default="tf_efficientnet_lite0", help="a network of timm")
    parser.add_argument("--weights", required=True, help="its pretrained weights")
    parser.add_argument("--modes", nargs="+", default=["auto", "features", "2", "off"], help="values of schedule.cache")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for folder in given.folders:
        runs = {mode: [measure(folder, mode, seed, given) for seed in range(given.seeds)] for mode in given.modes}
        for mode, results in runs.items():
            row = {
                "data": folder.name,
                "mode": mode,
                "acc": mean_and_error([acc for acc, _ in results]),
                "loss": mean_and_error([loss for _, loss in results]),
            }
            if "off" in runs:
                pairs = zip(results, runs["off"], strict=True)
                row["acc_minus_off"] = mean_and_error([acc - off for (acc, _), (off, _) in pairs])
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
