"""A model of five classes learns two more: what it forgets, against training from scratch on all seven.

    uv run python tests/benchmarks/growing.py FOLDER --seeds 3 --size 64

FOLDER holds a folder for each class, or ``train`` and ``test`` above them, which are put together. The first seven classes are
taken, at most ``--images`` of each, in an order drawn from the seed; the last two are new. Each row is a mean over seeds: test
accuracy of the old classes before and after, of the new ones, of all, and the seconds of training (of what grew alone). Embedded
weights, so that nothing is downloaded.

Measured with ``--schedule probe --only "as the,imprinted,1e-5"`` on 518 photographs in 8 classes, three seeds, 112 test images
of old classes in all (one standard error of their accuracy is 4.5 points):

|  | old before | old after | new | all |
|---|---|---|---|---|
| from scratch on all | 71.1 | 58.4 | 38.2 | 54.1 |
| rehearsal, head solved | 71.1 | 58.4 | 38.2 | 54.1 |
| rehearsal, head from imprinted rows, 5 epochs | 71.1 | 45.3 | 52.9 | 49.0 |
| no rehearsal, head from imprinted rows, 5 epochs | 71.1 | 8.2 | 65.7 | 25.8 |
| no rehearsal, one epoch at 1e-5 | 71.1 | 12.8 | 55.9 | 26.5 |

Before, the model chose among five classes; with seven to choose from, one trained from scratch does no better than the one that
grew.

Three ways to begin the rows of new classes, ``--rows``, with ``--only imprinted`` and the rest as above (old after, new, all):

| rows | rehearsal | no rehearsal |
|---|---|---|
| centred class means, as ``finetune grow`` has them | 45.3, 52.9, 49.0 | 8.2, 65.7, 25.8 |
| class means alone (Qi et al. 2018), without their normalised head | 1.5, 64.5, 20.9 | 0.0, 69.4, 21.0 |
| zeros | 68.0, 11.1, 51.6 | 60.7, 12.3, 46.8 |

Centred rows give old and new classes alike a chance where old images are rehearsed; zeros forget least, and hardly learn what is
new. With rehearsal the default solves the head, whose rows then begin from nothing.
"""

import argparse
import functools
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from finetune.cli import main
from finetune.models import weights
from finetune.models.heads.linear import LinearHead
from finetune.models.imprinting import grown_head
from finetune.safe_files import read_json

OLD, NEW = 5, 2


def head_with_other_rows(
    head: LinearHead, *, names: Sequence[str], classes: Sequence[str], features_of: Callable[[str], Tensor], zeros: bool
) -> LinearHead:
    """As ``grown_head``, with zeros or with the mean of normalised features as the row of a new class, and the mean bias."""
    grown = grown_head(head, names=names, classes=classes, features_of=features_of)
    length, bias = head.fc.weight.detach().norm(dim=1).mean(), head.fc.bias.detach().mean()
    with torch.no_grad():
        for number, name in enumerate(classes):
            if name not in names:
                mean_D = normalize(features_of(name), dim=1).mean(0)
                grown.fc.weight[number] = 0.0 if zeros else length * normalize(mean_D, dim=0)
                grown.fc.bias[number] = bias
    return grown


def copy_images(source: Path, target: Path, *, seed: int, images: int) -> list[str]:
    """Copy some images of seven classes to ``old``, ``new`` and ``all``; return the classes, the new ones last."""
    folders = [source / split for split in ("train", "test") if (source / split).is_dir()] or [source]
    draw = random.Random(seed)
    names = sorted({one.name for folder in folders for one in folder.iterdir() if one.is_dir()})
    draw.shuffle(names)
    names = names[: OLD + NEW]
    for number, name in enumerate(names):
        files = sorted(file for folder in folders for file in (folder / name).iterdir() if file.is_file())
        draw.shuffle(files)
        for file in files[:images]:
            for part in ("old" if number < OLD else "new", "all"):
                (target / part / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / part / name / f"{file.parent.parent.name}-{file.name}")
    return names


def finetune(*words: str) -> None:
    if main(list(words)) != 0:
        raise SystemExit(f"failed: {' '.join(words)}")


def run() -> None:
    """Print a row for each way to learn the new classes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument(
        "--schedule", default="gradual", help="of the first run, of the one from scratch, and of rehearsal"
    )
    parser.add_argument("--only", default="", help="words of the names of rows, with commas")
    parser.add_argument(
        "--rows", choices=("centred", "means", "zeros"), default="centred", help="of new classes, imprinted"
    )
    given = parser.parse_args()
    if given.rows != "centred":
        weights.grown_head = functools.partial(head_with_other_rows, zeros=given.rows == "zeros")
    ways = {
        "rehearsal, as the first": ("all", f"schedule={given.schedule}"),
        "rehearsal, head from imprinted": ("all", "schedule=frozen"),
        "no rehearsal, head from imprinted": ("new", "schedule=frozen"),
        "no rehearsal, one epoch of 1e-5": ("new", "schedule=frozen", "schedule.phases.0.epochs=1", "lr=1e-5"),
        "no rehearsal, schedule=gradual": ("new", "schedule=gradual"),
    }
    rows: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            copy_images(given.folder, root, seed=seed, images=given.images)
            common = [f"input.size={given.size}", f"seed={seed}", "logger=none", "report=false", "data.num_workers=0"]
            network = ["backbone=resnet18", "weights=embedded", f"schedule={given.schedule}"]
            finetune(str(root / "old"), *network, *common, f"run_dir={root / 'first'}")
            first = read_json(root / "first" / "results.json", dict, name="first")
            finetune(
                str(root / "all"), *network, *common, f"data.split_from={root / 'first'}", f"run_dir={root / 'scratch'}"
            )
            scratch = read_json(root / "scratch" / "results.json", dict, name="scratch")
            names = scratch["data"]["classes"]
            recall = dict(zip(names, scratch["test"]["recall"], strict=True))
            images = dict(zip(names, scratch["data"]["counts"]["test"], strict=True))
            shares = [
                sum(recall[name] * images[name] for name in part) / sum(images[name] for name in part)
                for part in (first["data"]["classes"], set(names) - set(first["data"]["classes"]))
            ]
            row = (first["test"]["acc"], *shares, scratch["test"]["acc"], scratch["seconds"]["training"])
            rows.setdefault("from scratch on all", []).append(row)
            for number, (way, (data, *words)) in enumerate(ways.items()):
                if given.only and not any(part in way for part in given.only.split(",")):
                    continue
                finetune(
                    "grow", str(root / "first"), str(root / data), *words, *common[1:], f"run_dir={root / str(number)}"
                )
                results = read_json(root / str(number) / "results.json", dict, name=way)
                growth = results["growth"]
                everything = growth["after"] * growth["old_images"] + growth["new"] * growth["new_images"]
                everything /= growth["old_images"] + growth["new_images"]
                row = (growth["before"], growth["after"], growth["new"], everything, results["seconds"]["training"])
                rows.setdefault(way, []).append(row)
    print(f"{'':36} {'before':>7} {'after':>7} {'new':>7} {'all':>7} {'seconds':>8}")
    for way, measured in rows.items():
        before, after, new, everything, seconds = (statistics.mean(column) for column in zip(*measured, strict=True))
        print(f"{way:36} {before:7.1%} {after:7.1%} {new:7.1%} {everything:7.1%} {seconds:8.1f}")


if __name__ == "__main__":
    run()
