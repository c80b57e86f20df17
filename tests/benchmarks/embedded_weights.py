"""What the embedded weights are worth: five ways to train, four data sets they never saw, 5 to 100 labels a class.

    uv run --with matplotlib python tests/benchmarks/embedded_weights.py --weights embedded=FILE --out rows.jsonl
    uv run python tests/benchmarks/embedded_weights.py --table rows.jsonl

Rows: ``random_frozen`` and ``frozen`` solve a logistic regression on the features of a network that stays as it is;
``scratch``, ``gradual`` and ``lp_ft`` train the same number of steps on the same images. Every row is a mean over seeds
(of the labelled images, and of the initialisation where there is one) with the 95% interval of Student's t.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transfer_sets import SETS, TransferSet

from finetune.input_spec import IMAGENET_MEAN, IMAGENET_STD

WAYS = ("random_frozen", "frozen", "scratch", "gradual", "lp_ft")
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")


def network(weights: Path | None, *, classes: int, seed: int, zero_init_last: bool = True) -> nn.Module:
    """A ResNet-18 with a new head: from a file, or from a random initialisation."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("resnet18", num_classes=classes, zero_init_last=zero_init_last)
    if weights is not None:
        parts = sorted(weights.glob("backbone-*.safetensors")) if weights.is_dir() else [weights]
        state = {name: value.float() for part in parts for name, value in load_file(part).items()}
        left = model.load_state_dict(state, strict=False)
        assert not left.unexpected_keys, left.unexpected_keys
        # batch counters are not part of a published state; the head is new
        missing = [key for key in left.missing_keys if not key.startswith("fc.") and "num_batches" not in key]
        assert not missing, missing
    return model


def normalised(images_BCHW: Tensor) -> Tensor:
    """uint8 images on ImageNet's scale."""
    mean = torch.tensor(IMAGENET_MEAN, device=images_BCHW.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images_BCHW.device)[:, None, None]
    return ((images_BCHW.float() / 255.0 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def features(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Pooled features of every image, float32 (B, D) on the processor."""
    model.eval()
    parts = [model.forward_head(model.forward_features(normalised(i)), pre_logits=True) for i in images_BCHW.split(256)]
    return torch.cat(parts).float().cpu()


def solved_head(features_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the logistic regression on standardised features, written for the raw ones."""
    mean, std = features_ND.mean(0), features_ND.std(0) + 1e-6
    solver = LogisticRegression(C=1.0, max_iter=500, tol=1e-3)
    solver.fit(((features_ND - mean) / std).numpy(), targets_N.numpy())
    weight = torch.tensor(solver.coef_, dtype=torch.float32) / std
    return weight, torch.tensor(solver.intercept_, dtype=torch.float32) - weight @ mean


def shifted(images_BCHW: Tensor, generator: torch.Generator, reach: int) -> Tensor:
    """One random shift an image, edges repeated: the augmentation of every trained row."""
    batch, _, height, width = images_BCHW.shape
    move_2B = torch.randint(-reach, reach + 1, (2, batch), generator=generator).to(images_BCHW.device)
    rows = (torch.arange(height, device=images_BCHW.device) + move_2B[0][:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images_BCHW.device) + move_2B[1][:, None]).clamp(0, width - 1)
    batch_index = torch.arange(batch, device=images_BCHW.device)[:, None, None]
    return images_BCHW.permute(0, 2, 3, 1)[batch_index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def phase(model: nn.Module, images: Tensor, targets: Tensor, *, train: tuple[str, ...], steps: int, lr: float,
          layer_decay: float, seed: int, batch: int, batch_norm: str = "train") -> None:  # fmt: skip
    """One phase: the named stages train at lr * layer_decay ** (distance from the head), all others are frozen.

    ``batch_norm`` says whether running statistics of the trained stages move, as ``schedule.batch_norm`` does.
    """
    model.eval()
    groups = []
    for name, parameter in model.named_parameters():
        top = name.split(".")[0]
        stage = {"fc": "head"}.get(top, top if top.startswith("layer") else "stem")
        parameter.requires_grad_(stage in train)
        if stage in train:
            distance = len(STAGES) - 1 - STAGES.index(stage)
            rate = lr * layer_decay**distance
            groups.append({"params": [parameter], "peak": rate, "weight_decay": 0.05 * (parameter.ndim > 1)})
    for top, module in model.named_children():
        stage = {"fc": "head"}.get(top, top if top.startswith("layer") else "stem")
        module.train(stage in train and batch_norm == "train")
    optimizer = torch.optim.AdamW(groups, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in range(steps):
        while len(order) < batch:
            order += torch.randperm(len(images), generator=generator).tolist()
        rows, order = torch.tensor(order[:batch]), order[batch:]
        progress = (step + 0.5) / steps
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, progress / 0.1) * 0.5 * (1.0 + math.cos(math.pi * progress))
        inputs = normalised(shifted(images[rows], generator, images.shape[-1] // 12))
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=images.device.type == "cuda"):
            logits = model(inputs)
        loss = nn.functional.cross_entropy(logits.float(), targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def trained(model: nn.Module, way: str, images: Tensor, targets: Tensor, args: argparse.Namespace, seed: int) -> None:
    """Trains the model in place by the named way; each takes ``args.steps`` steps in all."""
    common: dict[str, Any] = {"seed": seed, "batch": args.batch}
    if way == "scratch":
        phase(model, images, targets, train=STAGES, steps=args.steps, lr=args.scratch_lr, layer_decay=1.0, **common)
        return
    common["batch_norm"] = args.batch_norm
    if way == "gradual":
        head, last = args.steps // 5, 3 * args.steps // 10
        phase(model, images, targets, train=("head",), steps=head, lr=3e-3, layer_decay=1.0, **common)
        phase(model, images, targets, train=STAGES[-2:], steps=last, lr=args.lr, layer_decay=0.7, **common)
        rest = args.steps - head - last
        phase(model, images, targets, train=STAGES, steps=rest, lr=args.lr, layer_decay=0.7, **common)
        return
    weight, bias = solved_head(features(model, images), targets.cpu())
    with torch.no_grad():
        model.fc.weight.copy_(weight)
        model.fc.bias.copy_(bias)
    phase(model, images, targets, train=STAGES, steps=args.steps, lr=args.lr, layer_decay=0.7, **common)


def rows(
    name: str, data: TransferSet, weights: dict[str, Path], args: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Every measurement of one data set that belongs to this shard."""
    device = torch.device(args.device)
    images, targets = data.images.to(device), data.targets.to(device)
    shard, shards = args.shard
    jobs = [
        (way, label, seed)
        for way in args.ways
        for label in (weights if way not in ("random_frozen", "scratch") else ["random"])
        for seed in range(args.seeds)
    ]
    for number, (way, label, seed) in enumerate(jobs):
        if number % shards != shard:
            continue
        weight_file = weights.get(label)
        frozen_D = None
        if "frozen" in way and not args.through_fit:
            # a zero-initialised last norm would switch off every residual branch of a network that never trains
            body = network(weight_file, classes=data.classes, seed=seed, zero_init_last=False)
            frozen_D = features(body.to(device), images)
        for per_class in args.per_class:
            chosen = data.labelled(per_class, seed)
            began = time.monotonic()
            if args.through_fit:
                from through_fit import fitted_accuracy  # needs Hydra, which a machine lent for the bare rows may lack

                accuracy = fitted_accuracy(
                    data,
                    chosen,
                    way=way,
                    weights=weight_file,
                    seed=seed,
                    steps=args.steps,
                    batch=args.batch,
                    scratch_lr=args.scratch_lr,
                )
                yield measured(name, way, label, per_class, seed, accuracy, time.monotonic() - began)
                continue
            if frozen_D is not None:
                weight, bias = solved_head(frozen_D[chosen], data.targets[chosen])
                guesses = (frozen_D[data.test] @ weight.T + bias).argmax(1)
            else:
                model = network(weight_file, classes=data.classes, seed=seed).to(device)
                trained(model, way, images[chosen.to(device)], targets[chosen.to(device)], args, seed)
                model.eval()
                with torch.no_grad():
                    parts = images[data.test.to(device)].split(256)
                    guesses = torch.cat([model(normalised(part)).argmax(1) for part in parts]).cpu()
            accuracy = float((guesses == data.targets[data.test]).float().mean())
            yield measured(name, way, label, per_class, seed, accuracy, time.monotonic() - began)


def measured(
    name: str, way: str, label: str, per_class: int, seed: int, accuracy: float, seconds: float
) -> dict[str, object]:
    """One measurement as a line of the output file."""
    return {
        "set": name,
        "way": way,
        "weights": label,
        "per_class": per_class,
        "seed": seed,
        "accuracy": accuracy,
        "seconds": round(seconds, 2),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half-width of its 95% interval (Student's t)."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, float("nan")
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(student.ppf(0.975, count - 1)) * spread / math.sqrt(count)


def table(lines: list[dict[str, object]]) -> str:
    """The rows as one Markdown table: a line for each set and way, a column for each number of labels."""
    counts = sorted({int(str(line["per_class"])) for line in lines})
    text = ["| set | way | weights | " + " | ".join(f"{count} a class" for count in counts) + " |"]
    text.append("|---|---|---|" + "---|" * len(counts))
    keys = sorted({(str(line["set"]), WAYS.index(str(line["way"])), str(line["weights"])) for line in lines})
    for name, way, label in keys:
        cells = []
        for count in counts:
            values = [
                100.0 * float(str(line["accuracy"]))
                for line in lines
                if (line["set"], line["way"], line["weights"], line["per_class"]) == (name, WAYS[way], label, count)
            ]
            mean, half = interval(values) if values else (float("nan"), float("nan"))
            cells.append(f"{mean:.1f} ± {half:.1f} ({len(values)})" if values else "")
        text.append(f"| {name} | {WAYS[way]} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def verdicts(lines: list[dict[str, object]]) -> str:
    """For each set, number of labels and file of weights: do the pretrained rows beat theirs, intervals apart?"""

    def at(name: object, way: str, label: object, count: object) -> tuple[float, float] | None:
        place = (name, way, label, count)
        values = [
            100.0 * float(str(line["accuracy"]))
            for line in lines
            if (line["set"], line["way"], line["weights"], line["per_class"]) == place
        ]
        return interval(values) if len(values) > 1 else None

    text = []
    places = sorted({(str(line["set"]), int(str(line["per_class"])), str(line["weights"])) for line in lines})
    for name, count, label in places:
        for way, rival in (("frozen", "random_frozen"), ("gradual", "scratch"), ("lp_ft", "scratch")):
            ours, theirs = at(name, way, label, count), at(name, rival, "random", count)
            if ours is None or theirs is None:
                continue
            gap = (ours[0] - ours[1]) - (theirs[0] + theirs[1])
            verdict = "apart" if gap > 0 else "touch"
            text.append(
                f"{name}, {count} a class, {label}: {way} {ours[0]:.1f} > {rival} {theirs[0]:.1f}? {verdict} ({gap:+.1f})"
            )
    return "\n".join(text)


def main() -> None:
    """Reads the command line; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="*", default=[], help="NAME=FILE or NAME=FOLDER, one or more")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--per-class", nargs="+", type=int, default=[5, 10, 20, 100])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="side of the images, pixels")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="rate of the pretrained rows at the head")
    parser.add_argument("--batch-norm", choices=["train", "eval"], default="eval", help="of the pretrained rows")
    parser.add_argument("--scratch-lr", type=float, default=1e-3)
    parser.add_argument("--through-fit", action="store_true", help="every row by finetune.fit, with the presets' rates")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--shard", type=lambda text: tuple(map(int, text.split("/"))), default=(0, 1), help="0/4: a quarter"
    )
    parser.add_argument("--out", type=Path, default=Path("embedded_rows.jsonl"))
    parser.add_argument("--table", nargs="+", type=Path, help="print the table of these files, measure nothing")
    args = parser.parse_args()
    if args.table:
        read = [json.loads(line) for file in args.table for line in file.read_text().splitlines()]
        print(table(read), verdicts(read), sep="\n\n")
        return
    weights = {name: Path(path) for name, _, path in (entry.partition("=") for entry in args.weights)}
    lines = []
    for name in args.sets:
        for line in rows(name, SETS[name](size=args.size), weights, args):
            lines.append(line)
            print(json.dumps(line), file=sys.stderr, flush=True)
            with args.out.open("a") as out:
                out.write(json.dumps(line) + "\n")
    print(table(lines), verdicts(lines), sep="\n\n")


if __name__ == "__main__":
    main()
