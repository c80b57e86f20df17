"""What a frozen phase loses or gains by its cache: accuracy with ``auto``, and with pools of so many views an image.

    uv run python tests/benchmarks/view_pool.py --data digits pets/ --seeds 3

The head of a frozen ResNet-18 is trained for some epochs; a pool as large as the number of epochs is training without a
cache. Differences to that are paired by seed.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence

import torch

from finetune.commands.train import train
from finetune.config import compose


def accuracy(*, data: str, weights: str, epochs: int, views: int | str, seed: int, size: int, per_class: int) -> float:
    """Test accuracy of one run."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *(["data=digits"] if data == "digits" else ["data=folder", f"data.root={data}"]),
            f"data.limit_per_class={per_class}",
            f"backbone.weights={weights}",
            f"input.size={size}",
            "schedule=frozen",
            f"schedule.epochs={epochs}",
            f"schedule.cache={views}",
            "schedule.lr=1e-2",
            "data.num_workers=0",
            "logger=none",
            "report=false",
            "trainer.precision=32-true",
            f"seed={seed}",
            f"run_dir={folder}/run",
        ]
        return float(train(compose(words)).results["test"]["acc"])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(spread / len(values))


def main() -> None:
    """Reads the command line; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--data", nargs="+", default=["digits"], help="digits, or image folders, DIR/<class>/*")
    parser.add_argument("--per-class", type=int, default=20, help="training images of each class")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--views", nargs="+", default=["auto", "1", "2", "4", "8", "16"], help="the last: one an epoch")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for data in args.data:
        by_pool = {
            views: [
                accuracy(
                    data=data,
                    weights=args.weights,
                    epochs=args.epochs,
                    views=views,
                    seed=seed,
                    size=args.size,
                    per_class=args.per_class,
                )
                for seed in range(args.seeds)
            ]
            for views in args.views
        }
        whole = by_pool[args.views[-1]]
        for views, values in by_pool.items():
            mean, error = interval(values)
            paired = interval([one - other for one, other in zip(values, whole, strict=True)])
            print(
                json.dumps(
                    {
                        "data": data,
                        "epochs": args.epochs,
                        "views": views,
                        "acc": round(100 * mean, 2),
                        "stderr": round(100 * error, 2),
                        "against_all": [round(100 * value, 2) for value in paired],
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
