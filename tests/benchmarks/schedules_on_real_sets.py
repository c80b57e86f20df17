"""Test accuracy and loss of schedules on real pictures with real pretrained weights, and where each phase stood.

    uv run python tests/benchmarks/schedules_on_real_sets.py FOLDER... --weights lite0.safetensors embedded --seeds 5 \
        --schedules default= "slow=schedule.phases.1.lr=1e-4 schedule.phases.2.lr=1e-4" probe=schedule=probe

Each FOLDER is an image folder with ``train`` and ``test``. A schedule is NAME=SETTINGS, separated by spaces; the settings may be
others than those of a schedule. ``embedded`` takes the embedded ResNet-18; any other value is a file of weights of ``--name``.
Every run is appended to ``--output`` as a line of JSON, and a run that is there already is not repeated. Prints, for each set,
network and schedule, the mean and standard error of test accuracy and loss over the seeds, and the mean difference to the first
schedule, paired by seed. ``--no-starts`` passes on the best epoch of each phase even where its start was better, as before
``restore=best`` counted the start: with it into another ``--output``, it gives the first column of the second table in
``conf/schedule/gradual.yaml`` (``--size 96``, ``data.limit_per_class=60`` for the solar cells).
"""

import argparse
import csv
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.config import compose
from finetune.runners.train import train
from finetune.training.phase_runner import PhaseRunner


def measure(
    folder: Path, weights: str, settings: Sequence[str], seed: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Train once; return the test's accuracy and loss, and the validation accuracy and loss of each epoch."""
    backbone = ["weights=embedded"]
    if weights != "embedded":
        backbone = ["backbone=timm", f"backbone.name={given.name}", f"backbone.weights={weights}"]
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            "data=folder",
            f"data.root={folder}",
            "data.num_workers=0",
            *backbone,
            f"input.size={given.size}",
            *settings,
            "logger=none",
            "report=false",
            "calibrate=false",
            "trainer.precision=32-true",
            f"seed={seed}",
            f"run_dir={scratch}/run",
        ]
        results = train(compose(words)).results
        with (Path(scratch) / "run" / "metrics.csv").open() as file:
            epochs = [(row["phase"], float(row["val/acc"]), float(row["val/loss"])) for row in csv.DictReader(file)]
    return {"acc": float(results.test.acc), "loss": float(results.test.loss), "epochs": epochs}


def mean_and_error(values: Sequence[float], scale: float, digits: int) -> str:
    """Mean and standard error."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return f"{scale * mean:.{digits}f} ± {scale * math.sqrt(variance / len(values)):.{digits}f}"


def main() -> None:
    """Run the benchmark; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--name", default="tf_efficientnet_lite0", help="the network of the files of weights, in timm")
    parser.add_argument("--schedules", nargs="+", default=["default="])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--output", type=Path, default=Path("schedules_on_real_sets.jsonl"))
    parser.add_argument("--no-starts", action="store_true", help="never keep the start of a phase")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.no_starts:
        PhaseRunner._start_was_better = lambda *_: False  # type: ignore[method-assign]
    schedules = {name: settings.split() for name, _, settings in (text.partition("=") for text in given.schedules)}
    done: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    if given.output.exists():
        rows = [json.loads(line) for line in given.output.read_text().splitlines()]
        done = {(row["set"], row["weights"], row["schedule"], row["seed"]): row for row in rows}
    for seed in range(given.seeds):
        for folder in given.folders:
            for weights in given.weights:
                for name, settings in schedules.items():
                    key = (folder.name, Path(weights).stem, name, seed)
                    if key in done:
                        continue
                    row = dict(zip(("set", "weights", "schedule", "seed"), key, strict=True))
                    done[key] = row | measure(folder, weights, settings, seed, given)
                    with given.output.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
    first = next(iter(schedules))
    print(
        f"| set | weights | schedule | test accuracy | test loss | accuracy less that of {first} |\n|---|---|---|---|---|---|"
    )
    for folder in given.folders:
        for weights in given.weights:
            for name in schedules:
                runs = [done[folder.name, Path(weights).stem, name, seed] for seed in range(given.seeds)]
                base = [done[folder.name, Path(weights).stem, first, seed] for seed in range(given.seeds)]
                gaps = [run["acc"] - other["acc"] for run, other in zip(runs, base, strict=True)]
                cells = [
                    mean_and_error([run["acc"] for run in runs], 100, 1),
                    mean_and_error([run["loss"] for run in runs], 1, 3),
                    "" if name == first else mean_and_error(gaps, 100, 1),
                ]
                print(f"| {folder.name} | {Path(weights).stem} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
