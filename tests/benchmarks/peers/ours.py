"""This project's command line, as a user types it; evaluation, test, bundle and report are left at their defaults.

The rates, their constancy and BatchNorm's mode are set to what the other programs do, and the last epoch is kept as they
keep it. The cache of activations, file facts and the precision trial is an empty folder: a first run on a machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from job import WEIGHT_DECAY, job

STAGES = {"head": "[head]", "top": "[last,head]", "all": "[all]"}


def main() -> None:
    """Train and answer."""
    told = job()
    scratch = Path(told.scratch)
    schedule = {"frozen": "frozen", "frozen_plain": "frozen", "staged": "gradual", "full": "full"}[told.mode]
    words = ["data=folder", f"data.root={told.data}", "backbone=resnet18", f"backbone.weights={told.weights}"]
    words += ["input.size=224", "input.crop_pct=0.875", "input.interpolation=bilinear"]
    words += [f"schedule={schedule}", "schedule.lr_schedule=constant", f"schedule.weight_decay={WEIGHT_DECAY}"]
    words += ["schedule.restore=last", "schedule.batch_norm=train"]
    words += [f"data.augment={'standard' if told.augment else 'none'}", f"data.batch_size={told.batch}"]
    for number, phase in enumerate(told.phases):
        own = {"train": STAGES[phase.train], "epochs": phase.epochs, "lr": phase.lr, "layer_decay": 1.0}
        words += [f"schedule.phases.{number}.{key}={value}" for key, value in own.items()]
    words += [f"seed={told.seed}", f"run_dir={scratch / 'run'}", *sys.argv[2:]]
    environment = {**os.environ, "FINETUNE_CACHE": str(scratch / "cache")}
    subprocess.run([sys.executable, "-m", "finetune", "train", *words], check=True, env=environment)
    results = json.loads((scratch / "run" / "results.json").read_text(encoding="utf-8"))
    told.done(
        accuracy=results["val"]["acc"],
        train_s=results["seconds"]["training"],
        phases_s=results["seconds"]["phases"],
        precision=results["precision"],
        cached=[(phase["cached_after"], phase["views"]) for phase in results["phases"]],
    )


if __name__ == "__main__":
    main()
