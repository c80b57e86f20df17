"""Do the images that ``finetune pick`` chooses teach more than others? Real pictures, a head on frozen features.

    uv run python tests/benchmarks/labels_to_teach.py FOLDER... --weights embedded lite0.safetensors --seeds 5

Each FOLDER is an image folder with ``train`` and ``test``. Two random images of each class have labels; then as many as there are
twice the classes are added again and again, chosen from ``train`` by each rule, and a head is fitted to all that have labels
(logistic regression on standardised features). Printed is the test accuracy in per cent at each number of labels, and the mean
difference to ``random`` with its standard error over the seeds:

    random     at random
    margin     the smallest gap between the two most probable classes
    spread     the farthest from all that have labels (core-set: k-centre greedy)
    badge      uncertain and unlike one another: gradients as the centres of k-means++ (Ash et al. 2020)
    typical    of clusters that hold no label yet, the image with the nearest neighbours (TypiClust, Hacohen et al. 2022), as
               ``finetune pick`` does

Mean difference to ``random`` over the six rounds, 2 to 14 labels a class, ten seeds, 96 pixels, ``--limit 120``, Lite0 and the
embedded network; the standard error of a round is 0.7 to 1.5, on solar cells to 2.5:

    rule           photographs      clothing     clip art   solar cells
    margin         +0.2   +1.1   -1.3   +0.3   -5.1   -1.0   -2.7   -1.4
    spread         -2.4   -2.6   -0.3   -3.6   -0.3   -1.0   +0.5   +1.0
    badge          +0.5   -0.6   -0.8   +1.8   -1.1   +0.4   -1.4   -1.8
    typical        +1.6   +2.6   +4.5   +4.1   +2.1   +2.1   -0.8   -1.2

In the first round ``typical`` gains 3.9, 3.2, 5.9, 5.7, 1.3, 3.7, 0.8 and -2.5.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from finetune.data.decode import DecodeOptions, decode_file
from finetune.data.transforms import eval_view
from finetune.inference.pick import typical
from finetune.models.build import build_backbone
from finetune.models.classifier import build_classifier

ROUNDS = 6


@torch.inference_mode()
def features(folder: Path, weights: str, name: str, size: int, limit: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and class numbers of both splits."""
    if weights == "embedded":
        backbone = build_backbone(source="timm", name="resnet18", weights="embedded")
    else:
        backbone = build_backbone(source="timm", name=name, weights=weights)
    classes = sorted(at.name for at in (folder / "train").iterdir())
    model = build_classifier(backbone=backbone, head="linear", classes=classes, size=(size, size)).eval()
    view, options = eval_view(model.input_spec), DecodeOptions(channels=3)
    found = {}
    for split in ("train", "test"):
        rows, targets = [], []
        for number, label in enumerate(classes):
            files = sorted((folder / split / label).iterdir())[:limit]
            for at in range(0, len(files), 32):
                batch = [view.of_pixels(decode_file(str(file), options)) for file in files[at : at + 32]]
                rows.append(model.embed(torch.stack(batch)).numpy())
                targets += [number] * len(batch)
        found[split] = np.concatenate(rows), np.array(targets)
    return found


Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, int, int], list[int]]


def at_random(pool: np.ndarray, shares: np.ndarray, taught: np.ndarray, count: int, seed: int) -> list[int]:
    """At random."""
    return [int(at) for at in np.random.default_rng(seed).permutation(len(pool))[:count]]


def margin(pool: np.ndarray, shares: np.ndarray, taught: np.ndarray, count: int, seed: int) -> list[int]:
    """The smallest margins."""
    ranked = np.sort(shares, axis=1)
    return [int(at) for at in np.argsort(ranked[:, -1] - ranked[:, -2], kind="stable")[:count]]


def spread(pool: np.ndarray, shares: np.ndarray, taught: np.ndarray, count: int, seed: int) -> list[int]:
    """The farthest from all that have labels, one after another."""
    nearest = np.min([np.square(pool - one).sum(1) for one in taught], axis=0)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(pool - pool[chosen[-1]]).sum(1))
    return chosen


def badge(pool: np.ndarray, shares: np.ndarray, taught: np.ndarray, count: int, seed: int) -> list[int]:
    """The first centres of k-means++ among the gradients of the last layer for the label that is predicted."""
    errors = shares - (shares == shares.max(1, keepdims=True))
    squared = np.square(errors).sum(1) * np.square(pool).sum(1)
    draw, chosen, nearest = np.random.default_rng(seed), [int(squared.argmax())], np.full(len(pool), np.inf)
    while len(chosen) < count:
        # a gradient is the outer product of the two
        products = (errors @ errors[chosen[-1]]) * (pool @ pool[chosen[-1]])
        nearest = np.minimum(nearest, np.maximum(squared + squared[chosen[-1]] - 2 * products, 0))
        nearest[chosen] = 0
        chosen.append(int(draw.choice(len(pool), p=nearest / nearest.sum())))
    return chosen


def by_type(pool: np.ndarray, shares: np.ndarray, taught: np.ndarray, count: int, seed: int) -> list[int]:
    """As the command does."""
    return typical(pool, taught, count, seed=seed)


RULES: dict[str, Rule] = {
    "random": at_random,
    "margin": margin,
    "spread": spread,
    "badge": badge,
    "typical": by_type,
}


def curve(sets: dict[str, tuple[np.ndarray, np.ndarray]], rule: Rule, seed: int) -> list[float]:
    """Test accuracy after each round."""
    (train, labels), (test, wanted) = sets["train"], sets["test"]
    classes = int(labels.max()) + 1
    draw = np.random.default_rng(seed)
    known = [int(at) for number in range(classes) for at in draw.permutation(np.flatnonzero(labels == number))[:2]]
    accuracies = []
    for number in range(ROUNDS + 1):
        scaler = StandardScaler().fit(train[known])
        head = LogisticRegression(max_iter=2000).fit(scaler.transform(train[known]), labels[known])
        accuracies.append(100 * float((head.predict(scaler.transform(test)) == wanted).mean()))
        left = np.setdiff1d(np.arange(len(train)), known)
        if number == ROUNDS or len(left) < 2 * classes:
            break
        shares = head.predict_proba(scaler.transform(train[left]))
        known += [int(left[at]) for at in rule(train[left], shares, train[known], 2 * classes, 100 * seed + number)]
    return accuracies


def main() -> None:
    """Run the benchmark; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--name", default="tf_efficientnet_lite0", help="the network of the files of weights, in timm")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--limit", type=int, default=200, help="pictures of a class in each split, at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for folder in given.folders:
        for weights in given.weights:
            sets = features(folder, weights, given.name, given.size, given.limit)
            curves = {
                name: np.array([curve(sets, rule, seed) for seed in range(given.seeds)]) for name, rule in RULES.items()
            }
            classes = int(sets["train"][1].max()) + 1
            labels = [2 * classes * (number + 1) for number in range(curves["random"].shape[1])]
            print(f"\n{folder.name}, {Path(weights).stem}: labels {' '.join(f'{one:>10}' for one in labels)}")
            for name, found in curves.items():
                gains = found - curves["random"]
                cells = [
                    f"{one:10.1f}" if name == "random" else f"{one:+5.1f} ±{error:4.1f}"
                    for one, error in zip(
                        (found if name == "random" else gains).mean(0),
                        gains.std(0, ddof=1) / math.sqrt(given.seeds),
                        strict=True,
                    )
                ]
                print(f"{name:26} {' '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
