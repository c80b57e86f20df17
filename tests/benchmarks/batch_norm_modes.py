"""Should the statistics of trainable BatchNorm layers move in fine-tuning? Measured at small batches.

    uv run python tests/benchmarks/batch_norm_modes.py --weights PATH --seeds 3

For batches of 8, 16, 32 and 64 images and both modes: the network is trained from pretrained weights on 20 labelled images a
class for the same 120 steps, at the default preset's rates; the last weights are tested. Data sets: scikit-learn's digits, and
cellular automata, which the formulas of the embedded weights do not draw. Prints a table of mean test accuracies in percent with
their standard errors, and writes every run to a JSON file.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from through_fit import write_folder
from transfer_sets import SETS

import finetune

STEPS, PER_CLASS = 120, 20


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=["digits", "automata"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--output", default="batch_norm_modes.json")
    given = parser.parse_args()
    runs = []
    for name in given.sets:
        data = SETS[name](size=given.size)
        for seed in range(given.seeds):
            generator = torch.Generator().manual_seed(seed)
            free = (~data.test).nonzero()[:, 0]
            free = free[torch.randperm(len(free), generator=generator)]
            chosen = torch.cat([free[data.targets[free] == k][:PER_CLASS] for k in range(data.classes)])
            with tempfile.TemporaryDirectory() as folder:
                write_folder(data, chosen, Path(folder) / "images")
                for batch in given.batches:
                    for mode in ("train", "eval"):
                        accuracy = one_run(Path(folder), weights=given.weights, batch=batch, mode=mode, seed=seed)
                        row = {"set": name, "seed": seed, "batch": batch, "mode": mode, "accuracy": accuracy}
                        runs.append(row)
                        print(json.dumps(row), flush=True)
                        Path(given.output).write_text(json.dumps(runs, indent=1))
    print("\n| set | batch | train | eval | eval - train, paired |\n|---|---|---|---|---|")
    for name in given.sets:
        for batch in given.batches:
            pairs = [
                [r["accuracy"] for r in runs if (r["set"], r["batch"], r["mode"]) == (name, batch, mode)]
                for mode in ("train", "eval")
            ]
            gaps = [b - a for a, b in zip(*pairs, strict=True)]
            cells = [_mean_and_error(values) for values in (*pairs, gaps)]
            print(f"| {name} | {batch} | {' | '.join(cells)} |")


def one_run(folder: Path, *, weights: str, batch: int, mode: str, seed: int) -> float:
    """Test accuracy after the same number of steps."""
    words = [
        "input.size=32",
        "input.crop_pct=1.0",
        f"data.batch_size={batch}",
        "data.augment=light",
        "data.num_workers=0",
        "logger=none",
        "schedule.restore=last",
        f"schedule.batch_norm={mode}",
        *[f"schedule.phases.{n}.max_steps={steps}" for n, steps in enumerate((STEPS // 4, STEPS // 4, STEPS // 2))],
        *[f"schedule.phases.{n}.epochs=1000" for n in range(3)],
    ]
    with tempfile.TemporaryDirectory(dir=folder) as place, contextlib.redirect_stdout(io.StringIO()):
        run = finetune.fit(
            data=folder / "images",
            schedule="gradual",
            weights=weights,
            run_dir=Path(place) / "run",
            seed=seed,
            overrides=words,
        )
    return float(run.results.test.acc)


def _mean_and_error(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{100 * statistics.fmean(values):.1f} ± {100 * error:.1f}"


if __name__ == "__main__":
    main()
