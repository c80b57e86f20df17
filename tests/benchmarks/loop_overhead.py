"""What the training loop of ``finetune train`` costs beside its arithmetic: its steps against those of a bare loop.

    uv run python tests/benchmarks/loop_overhead.py

Ours is the whole command (Lightning's Trainer, the module, the loader, loggers, checks, display) on images already decoded
in memory; a callback takes the time at the end of every training step. The bare loop has the same network, images,
precision, memory format, parameter groups and optimizer, and nothing else. They take turns; the first steps of each turn,
which choose kernels and make the optimizer's state, are left out, and so is what happens between epochs.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from finetune.build.classifier import build_model
from finetune.build.phases import build_phases
from finetune.build.training import loss_of, optimizer_factory
from finetune.config import compose
from finetune.data.image_source import ArraySource, arrays_source
from finetune.data.sources import DATA_SOURCES
from finetune.data.sources.kind import SourceKind
from finetune.runners.train import train
from finetune.split_settings import SplitSettings
from finetune.training.freezing import apply_phase
from finetune.training.param_groups import build_param_groups

SIZE, CLASSES = 224, 10
# steps at the start of each turn that are not counted
WARM = 3


class Clock(pl.Callback):
    """When each training step ended."""

    ends: list[float] = []  # noqa: RUF012 (the command makes its own object, and this is read from outside)

    def on_train_batch_end(self, *_: Any) -> None:
        """Called after the optimizer's step and the module's own work."""
        Clock.ends.append(time.perf_counter())


def memory_source(images: int) -> ArraySource:
    """Random images of the network's size, as many as asked for to train on, and one a class for each other split."""
    random = np.random.default_rng(0)
    splits = np.repeat(np.array([0, 1, 2], np.int8), [images, CLASSES, CLASSES])
    return arrays_source(
        images=random.integers(0, 256, (len(splits), SIZE, SIZE, 3), dtype=np.uint8),
        targets=np.arange(len(splits)) % CLASSES,
        classes=[str(number) for number in range(CLASSES)],
        name="memory",
        splits=splits,
        given=("train", "val", "test"),
        channels=3,
        split=SplitSettings(),
    )


def ours(words: Sequence[str]) -> list[float]:
    """Seconds of each counted step of the command."""
    Clock.ends = []
    with tempfile.TemporaryDirectory() as folder:
        train(compose([*words, f"run_dir={folder}/run", "+callbacks.clock._target_=__main__.Clock"]))
    return np.diff(Clock.ends)[WARM - 1 :].tolist()


def bare(words: Sequence[str], source: ArraySource, *, half: bool) -> list[float]:
    """Seconds of each counted step of the bare loop."""
    # the command asks for repeatable kernels, and the switch is the process's
    torch.use_deterministic_algorithms(False)
    config = compose([*words])
    classifier = build_model(config, source, lambda line: None).to(memory_format=torch.channels_last)
    (phase,) = build_phases(config, stages=classifier.stages, network=config.backbone.name)
    apply_phase(classifier, phase)
    groups = build_param_groups(classifier, rates=phase.rates(), weight_decay=phase.weight_decay)
    optimizer, loss_fn = optimizer_factory(phase, trusted=True)(groups), loss_of(config, source)(phase)
    rows = source.index.rows("train")
    targets = torch.from_numpy(source.index.targets[rows])
    images = torch.stack([source.read(int(row)) for row in rows])
    ends = []
    for chosen in torch.arange(len(rows)).split(config.data.batch_size):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = loss_fn(classifier(images[chosen]), targets[chosen]).mean()
        loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return np.diff(ends)[WARM - 1 :].tolist()


def main() -> None:
    """Take turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=33, help="of a turn")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed")
    parser.add_argument("--schedule", choices=("full", "frozen"), default="full")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    if options.steps < WARM + 2:
        parser.error(f"--steps: at least {WARM + 2}")
    # the trial of the precision and a cache of activations have no part in this
    os.environ["FINETUNE_CACHE"] = "off"
    torch.set_num_threads(options.threads)
    source = memory_source(options.steps * options.batch)
    DATA_SOURCES["memory"] = SourceKind(builder=lambda: lambda *, channels, split: source)
    words = ["data=digits", "data.source=memory", "input.channels=3", f"input.size={SIZE}", "input.crop_pct=1.0"]
    words += ["data.augment=none", f"data.batch_size={options.batch}", "backbone.weights=embedded", "report=false"]
    words += [f"schedule={options.schedule}", "schedule.phases.0.epochs=1", f"trainer.precision={options.precision}"]
    half = options.precision == "bf16-mixed"
    rounds = []
    for number in range(options.rounds):
        turns = {"ours": lambda: ours(words), "bare": lambda: bare(words, source, half=half)}
        # another first one in every round
        names = list(turns) if number % 2 == 0 else list(turns)[::-1]
        found = {name: median(turns[name]()) for name in names}
        rounds.append({**found, "ratio": found["ours"] / found["bare"]})
        print(
            f"round {number}: ours {found['ours']:.4f} s a step, bare {found['bare']:.4f}, ratio {rounds[-1]['ratio']:.4f}"
        )
    ratios = [entry["ratio"] for entry in rounds]
    print()
    print(
        f"| {options.schedule}, {options.precision}, batch {options.batch}, {options.threads} threads | ours | bare | ratio |"
    )
    print("|---|---|---|---|")
    cells = [f"{1000 * median(entry[name] for entry in rounds):.1f} ms" for name in ("ours", "bare")]
    print(f"| median step | {' | '.join(cells)} | {median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f}) |")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"settings": settings, "rounds": rounds}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
