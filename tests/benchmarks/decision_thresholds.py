"""How should the thresholds of a model for several labels be chosen? Real pictures, several to an image, default schedule.

    uv run python tests/benchmarks/decision_thresholds.py FOLDER... --weights embedded lite0.safetensors --seeds 3

Each FOLDER is an image folder with ``train`` and ``test``. An image for training is made of up to four of its pictures in a
square, drawn so that the k-th class is shown 0.75 times as often as the one before; its labels are the classes of its pictures. A
network is trained on 400 of them, its thresholds are fitted on ``--val`` others, and macro F1, micro F1 and exact match of 600
others, made of pictures of ``test``, are printed in per cent for each rule:

    half       one half for every class
    counted    the threshold with the highest F1 of the class on the validation images
    promised   the one with the highest F1 that the calibrated probabilities promise, without looking at the labels
    common     one threshold for all classes, with the highest micro F1 on the validation images

and last the mean difference to ``half`` over all runs with its standard error. Fashion-MNIST, photographs in eight classes, clip
art in eight and solar cells in four, the embedded network, 120 validation images, two seeds each:

    rule                   macro F1       micro F1    exact match   difference to half, 8 runs
    counted            +4.9 ± 1.0     +0.7 ± 0.5     -2.6 ± 0.6
    promised           +5.5 ± 1.0     +1.5 ± 0.5     -2.2 ± 0.6
    common             +3.1 ± 0.8     +2.2 ± 0.7     -0.5 ± 0.7

``promised`` against ``counted``, paired: macro F1 +0.6 ± 0.4, micro F1 +0.9 ± 0.2, exact match +0.5 ± 0.7. With 40 validation
images, of which few or none show a rare class (``counted`` and ``promised`` leave a class that none shows, or all, at one half):

    counted            +3.6 ± 1.0     -3.2 ± 1.8    -10.4 ± 3.9
    promised           +6.2 ± 1.1     +1.6 ± 0.4     -1.6 ± 0.5
    promised, if 5     +3.8 ± 0.9     +1.8 ± 0.4     -0.9 ± 0.4   of a class that fewer than five images show: one half
    common             +4.7 ± 1.1     +2.2 ± 0.6     -0.6 ± 0.6
"""

import argparse
import csv
import json
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score

from finetune.confidence.thresholds import best_threshold
from finetune.config import compose
from finetune.runners.train import train

TRAIN, TEST, CELL, RARER = 400, 600, 64, 0.75


def make_table(folder: Path, out: Path, *, seed: int, val: int) -> Path:
    """Write the images, and the table of their labels and splits."""
    draw = random.Random(seed)
    pictures = {
        split: {at.name: sorted(at.iterdir()) for at in sorted((folder / split).iterdir())}
        for split in ("train", "test")
    }
    classes = list(pictures["train"])
    draw.shuffle(classes)
    shares = [RARER**number for number in range(len(classes))]
    rows = []
    for number in range(TRAIN + val + TEST):
        split = "train" if number < TRAIN else "val" if number < TRAIN + val else "test"
        canvas, shown = Image.new("RGB", (2 * CELL, 2 * CELL), (127, 127, 127)), set()
        for cell in range(4):
            if draw.random() < 0.35:
                continue
            name = draw.choices(classes, shares)[0]
            with Image.open(draw.choice(pictures["test" if split == "test" else "train"][name])) as picture:
                canvas.paste(picture.convert("RGB").resize((CELL, CELL)), (cell % 2 * CELL, cell // 2 * CELL))
            shown.add(name)
        canvas.save(out / f"{number}.png")
        rows.append((f"{number}.png", ";".join(sorted(shown)), split))
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return out / "table.csv"


Rule = Callable[[np.ndarray, np.ndarray], list[float]]


def counted(probabilities_NK: np.ndarray, targets_NK: np.ndarray) -> list[float]:
    """The highest F1 on the validation images."""
    return [best_threshold(p, t) for p, t in zip(probabilities_NK.T, targets_NK.T, strict=True)]


def promised(probabilities_NK: np.ndarray, targets_NK: np.ndarray) -> list[float]:
    """The highest F1 that the probabilities promise."""
    return [best_threshold(p, p) for p in probabilities_NK.T]


def common(probabilities_NK: np.ndarray, targets_NK: np.ndarray) -> list[float]:
    """The highest micro F1 with one threshold."""
    return [best_threshold(probabilities_NK.ravel(), targets_NK.ravel())] * targets_NK.shape[1]


def enough(rule: Rule, fewest: int) -> Rule:
    """A rule that leaves one half where fewer validation images than that show the class, or do not."""

    def chosen(probabilities_NK: np.ndarray, targets_NK: np.ndarray) -> list[float]:
        shown_K = targets_NK.sum(0)
        few_K = np.minimum(shown_K, len(targets_NK) - shown_K) < fewest
        return [0.5 if few else at for few, at in zip(few_K, rule(probabilities_NK, targets_NK), strict=True)]

    return chosen


RULES: dict[str, Rule] = {
    "half": lambda _, targets_NK: [0.5] * targets_NK.shape[1],
    "counted": enough(counted, 1),
    "promised": enough(promised, 1),
    "promised, if 5": enough(promised, 5),
    "common": common,
}


def run(folder: Path, weights: str, seed: int, given: argparse.Namespace) -> dict[str, list[float]]:
    """Train once, and return macro F1, micro F1 and exact match on the test images for each rule."""
    backbone = ["weights=embedded"]
    if weights != "embedded":
        backbone = ["backbone=timm", f"backbone.name={given.name}", f"backbone.weights={weights}"]
    with tempfile.TemporaryDirectory() as scratch:
        table = make_table(folder, Path(scratch), seed=seed, val=given.val)
        words = ["data=manifest", f"data.path={table}", "'data.label_separator=;'", "data.num_workers=0", *backbone]
        words += [f"input.size={2 * CELL}", "logger=none", "report=false", "trainer.precision=32-true", f"seed={seed}"]
        words = [word.strip("'") for word in words]
        train(compose([*words, "monitor=val/f1_macro", f"run_dir={scratch}/run"]))
        arrays = load_file(Path(scratch) / "run" / "evaluation.safetensors")
    val, test = (
        (arrays[f"{split}/probabilities"].astype(np.float64), arrays[f"{split}/targets"] > 0)
        for split in ("val", "test")
    )
    scores = {}
    for name, rule in RULES.items():
        predicted = test[0] > np.array(rule(val[0], val[1].astype(np.float64)))
        f1 = [f1_score(test[1], predicted, average=average, zero_division=0) for average in ("macro", "micro")]
        scores[name] = [100 * value for value in (*f1, accuracy_score(test[1], predicted))]
    return scores


def mean_and_error(values: Sequence[float]) -> str:
    """Mean and standard error."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return f"{np.mean(values):+6.1f} ± {spread / math.sqrt(len(values)):.1f}"


def main() -> None:
    """Run the benchmark; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--name", default="tf_efficientnet_lite0", help="the network of the files of weights, in timm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--val", type=int, default=120)
    parser.add_argument("--output", type=Path, default=Path("decision_thresholds.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for folder in given.folders:
        for weights in given.weights:
            for seed in range(given.seeds):
                scores = run(folder, weights, seed, given)
                lines.append(scores)
                text = json.dumps({"set": folder.name, "weights": Path(weights).stem, "seed": seed, "scores": scores})
                with given.output.open("a") as file:
                    file.write(text + "\n")
                print(text, flush=True)
    print(f"{'rule':22} {'macro F1':>14} {'micro F1':>14} {'exact match':>14}   difference to half, {len(lines)} runs")
    for name in RULES:
        gains = [np.array(one[name]) - np.array(one["half"]) for one in lines]
        print(f"{name:22} " + " ".join(f"{mean_and_error([gain[at] for gain in gains]):>14}" for at in range(3)))


if __name__ == "__main__":
    main()
