"""Digits by their features, before and after fine-tuning; and how many planted wrong labels the doubtful list finds.

    uv run python -m tests.benchmarks.digits_embeddings [--weights embedded] [--seeds 0 1 2] [key=value ...]

For each seed (of the splits, and of training) the same network embeds the digits with its pretrained weights and after a run of
``experiment=digits`` from these weights, changed by the overrides given. Reported, as mean and range over the seeds:

- recall@1: a test image's nearest neighbour among the training and validation images has its label
- NMI: of k-means with 10 clusters on the test images, which neither training nor the choice of anything has seen
- kNN, logistic: test accuracy of finetune classify
- run: test accuracy of the run itself

Then 2% of all labels are made wrong at random, five times, and the doubtful list of finetune cluster is read: precision and
recall in its first 2% and 5%, on the pretrained features, which saw no label.

Measured (resnet18, embedded weights, 32 x 32 pixels, seeds 0, 1, 2; mean, least, most); four minutes on a loaded core:

                before                  after
    recall@1    0.986  0.985  0.989     0.996  0.993  1.000
    map         0.757  0.748  0.762     0.996  0.994  1.000
    NMI         0.847  0.828  0.872     0.993  0.986  1.000
    kNN         0.984  0.978  0.993     0.996  0.993  1.000
    logistic    0.985  0.981  0.989     0.996  0.993  1.000
    run                                 0.994  0.989  1.000

    planted: in the first 2% of the list precision = recall = 0.928 (0.917 to 0.944); in the first 5% recall 1.000 in all five
    draws, and precision 0.400, which is all that there are; 42 (41 to 43) listed as likely, 36 planted
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.cli import main as finetune
from finetune.config import compose
from finetune.embeddings.classify import fit_and_test, split_index
from finetune.embeddings.clustering import cluster, quality
from finetune.embeddings.embeddings import Embeddings
from finetune.embeddings.label_errors import find_label_errors
from finetune.embeddings.retrieval import queries_and_rest, retrieval_quality
from finetune.runners.train import train

CLASSES = 10


def figures(embeddings: Embeddings) -> dict[str, float]:
    """Of one set of features."""
    queries, among, _ = queries_and_rest(embeddings)
    found = {
        "recall@1": retrieval_quality(embeddings, queries=queries, among=among).recall[1],
        "map": retrieval_quality(embeddings, queries=queries, among=among).map,
    }
    test = embeddings.take(embeddings.rows("test"))
    found["NMI"] = float(quality(test, cluster(test, clusters=CLASSES)).nmi or 0.0)
    index, rows, _ = split_index(embeddings)
    for method, name in (("knn", "kNN"), ("logistic", "logistic")):
        found[name] = fit_and_test(method, embeddings.features[rows], index).metrics["test"].acc
    return found


def planted(embeddings: Embeddings, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Precision and recall of the doubtful list in its first 2% and 5%, for each seed."""
    found: dict[str, list[float]] = {}
    count = round(0.02 * len(embeddings))
    for seed in seeds:
        draw = np.random.default_rng(seed)
        wrong = draw.choice(len(embeddings), count, replace=False)
        labels = embeddings.labels.copy()
        labels[wrong] = (labels[wrong] + draw.integers(1, CLASSES, count)) % CLASSES
        doubts = find_label_errors(replace(embeddings, labels=labels))
        hits = np.isin(doubts.rows, wrong)
        for share in (0.02, 0.05):
            first = hits[: round(share * len(embeddings))]
            found.setdefault(f"precision in the first {share:.0%}", []).append(float(first.mean()))
            found.setdefault(f"recall in the first {share:.0%}", []).append(float(first.sum() / count))
        found.setdefault("listed as likely", []).append(doubts.likely)
    return found


def embedded(words: Sequence[str], output: Path) -> Embeddings:
    """What ``finetune embed`` writes."""
    assert finetune(["embed", *words, "--output", str(output), "--precision", "float32"]) == 0
    return Embeddings.load(output)


def shown(values: Sequence[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    rows: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    labels: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            words = ["experiment=digits", f"backbone.weights={given.weights}", f"seed={seed}", *given.overrides]
            config = compose(words)
            bare = [f"backbone={config.backbone.name}", f"backbone.weights={given.weights}", f"seed={seed}"]
            bare += ["data=digits", *(f"input.size={size}" for size in [config.input.size] if size)]
            before = embedded(bare, Path(folder) / f"before-{seed}.npz")
            run = train(compose([*words, f"run_dir={folder}/run-{seed}"]))
            after = embedded([str(run.run_dir)], Path(folder) / f"after-{seed}.npz")
            measured: dict[str, dict[str, Any]] = {"before": figures(before), "after": figures(after)}
            measured["after"]["run"] = run.results.test.acc
            for name, values in measured.items():
                for figure, value in values.items():
                    rows[name].setdefault(figure, []).append(value)
            if seed == given.seeds[0]:
                labels = planted(before, range(5))
    print(f"\nresnet18, weights={given.weights}, seeds {given.seeds}: mean (least to most)")
    for name, values in rows.items():
        print(f"{name:7}" + "".join(f"  {figure} {shown(found)}" for figure, found in values.items()))
    print("2% planted wrong labels, pretrained features, five draws: mean (least to most)")
    for name, found in labels.items():
        print(f"  {name:28} {shown(found)}")


if __name__ == "__main__":
    main()
