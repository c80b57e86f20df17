"""What a temperature does to finished runs: fitted on one half of the validation and test images, tried on the other.

    uv run python tests/benchmarks/temperature_of_runs.py RUN [RUN ...]

The images of both splits, on which no weight was trained, are parted at random 40 times. For each run: how often the rules of
:func:`finetune.confidence.temperature.fit_temperature` apply a temperature, and the calibration error and loss of the other half
without it and with it.
"""

import argparse
from pathlib import Path

import numpy as np

from finetune.confidence.temperature import assess, fit_temperature, tempered
from finetune.report.run_files import read_run

TIMES = 40


def main() -> None:
    """Print a line for each run, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    means = []
    for folder in parser.parse_args().runs:
        run = read_run(folder)
        splits = [run.evaluation[split] for split in ("val", "test")]
        probabilities_NK = np.concatenate([split["probabilities"] for split in splits]).astype(np.float64)
        targets = np.concatenate([split["targets"] for split in splits])
        kept = run.results.calibration
        if kept is not None and kept.temperature != 1:
            probabilities_NK = tempered(probabilities_NK, 1 / kept.temperature, multi_label=run.multi_label)
        random, rows = np.random.default_rng(0), []
        for _ in range(TIMES):
            fitted, other = np.array_split(random.permutation(len(targets)), 2)
            temperature = fit_temperature(probabilities_NK[fitted], targets[fitted]).temperature
            before, loss = assess(probabilities_NK[other], targets[other])
            after, new_loss = assess(probabilities_NK[other], targets[other], temperature)
            rows.append((temperature, before.ece, after.ece, loss, new_loss))
        values = np.array(rows)
        applied = values[:, 0] != 1
        worse = f"{np.mean(values[applied, 4] > values[applied, 3]):4.0%}" if applied.any() else "   -"
        median = np.median(values[applied, 0]) if applied.any() else 1.0
        means.append((applied.mean(), *values[:, 1:].mean(axis=0)))
        _, ece, new_ece, loss, new_loss = means[-1]
        print(
            f"{folder.name:20} {len(targets) // 2:5} images, applied {applied.mean():4.0%}, temperature {median:4.2f}, "
            f"calibration error {ece:.4f} -> {new_ece:.4f}, loss {loss:.4f} -> {new_loss:.4f}, worse of applied {worse}",
            flush=True,
        )
    table = np.array(means)
    for name, before, after in (("calibration error", 1, 2), ("loss", 3, 4)):
        change = table[:, after] - table[:, before]
        error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.nan
        print(
            f"{name}: {table[:, before].mean():.4f} -> {table[:, after].mean():.4f}, "
            f"change {change.mean():+.4f}, standard error {error:.4f}"
        )


if __name__ == "__main__":
    main()
