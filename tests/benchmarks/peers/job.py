"""What every program of the comparison is told, and what it answers: one JSON file each way."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# of AdamW in every program; its other settings are the libraries' own, which agree
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, kw_only=True)
class Phase:
    """``train``: ``head``, ``top`` (the last stage and the head) or ``all``."""

    train: str
    epochs: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one program.

    Args:
        data: Folder with ``train/CLASS/*.jpg`` and ``valid/CLASS/*.jpg``.
        weights: A ResNet-18 without classifier, names as in torchvision, float32, safetensors.
        mode: Name of the comparison.
        phases: What trains, how long, at which constant rate.
        augment: Crops of 25 to 100 % of the area, mirrored at random; else the evaluation view.
        seed: Of all randomness.
        batch: Images a step.
        workers: Of the data loader.
        classes: Number of classes.
        scratch: An empty folder for whatever the program writes.
        output: Where the answer is expected.
    """

    data: str
    weights: str
    mode: str
    phases: tuple[Phase, ...]
    augment: bool
    seed: int
    batch: int
    workers: int
    classes: int
    scratch: str
    output: str

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def done(self, *, accuracy: float, train_s: float, **more: Any) -> None:
        """Write the answer: accuracy on the validation images after the last epoch, and seconds spent training."""
        answer = {"accuracy": accuracy, "train_s": train_s, **more}
        Path(self.output).write_text(json.dumps(answer), encoding="utf-8")


def job() -> Job:
    """The job on the command line."""
    told = json.loads(sys.argv[1])
    told["phases"] = tuple(Phase(**phase) for phase in told["phases"])
    return Job(**told)
