"""One row of the measurement through the front door: a folder of images, ``finetune.fit``, the test accuracy it reports."""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transfer_sets import TransferSet

import finetune


def write_folder(data: TransferSet, chosen: Tensor, root: Path) -> None:
    """``root/{train,val,test}/<class>/*.png``: the labelled images, the test set, and one other image a class for ``val``.

    The framework wants a validation split. It gets the least there is, and nothing is decided by it: the last weights
    are kept.
    """
    free = ~data.test
    free[chosen] = False
    for_validation = [int((free & (data.targets == k)).nonzero()[0, 0]) for k in range(data.classes)]
    rows = {"train": chosen.tolist(), "val": for_validation, "test": data.test.nonzero()[:, 0].tolist()}
    for split, members in rows.items():
        for row in members:
            folder = root / split / f"{int(data.targets[row]):02}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[row].permute(1, 2, 0).numpy()).save(folder / f"{row:05}.png")


def overrides(way: str, *, steps: int, batch: int, images: int, size: int, scratch_lr: float) -> list[str]:
    """What the command line would take: the preset, and the same number of steps in all for every way."""
    epochs = -(-steps // max(-(-images // batch), 1))

    def length(phase: int, share: float) -> list[str]:
        return [f"schedule.phases.{phase}.max_steps={round(share * steps)}", f"schedule.phases.{phase}.epochs={epochs}"]

    common = [f"input.size={size}", f"data.batch_size={batch}", "data.augment=light", "data.num_workers=0"]
    common += ["logger=none", "schedule.restore=last", "input.crop_pct=1.0"]
    if way == "scratch":
        # without pretraining the statistics must move, and the stem learns as fast as the head
        own = [f"schedule.phases.0.lr={scratch_lr}", "schedule.phases.0.layer_decay=1.0", "schedule.batch_norm=train"]
        return [*common, *length(0, 1.0), *own]
    if way == "gradual":
        return [*common, *length(0, 0.2), *length(1, 0.3), *length(2, 0.5)]
    if way == "lp_ft":
        return [*common, *length(1, 1.0)]
    return [*common, *length(0, 1.0)]


PRESETS = {"random_frozen": "frozen", "frozen": "frozen", "scratch": "full", "gradual": "gradual", "lp_ft": "lp_ft"}


def fitted_accuracy(
    data: TransferSet,
    chosen: Tensor,
    *,
    way: str,
    weights: Path | None,
    seed: int,
    steps: int,
    batch: int,
    scratch_lr: float,
) -> float:
    """Accuracy on the test set of a run of the framework, from 0 to 1."""
    size = int(data.images.shape[-1])
    words = overrides(way, steps=steps, batch=batch, images=len(chosen), size=size, scratch_lr=scratch_lr)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(data, chosen, Path(folder) / "images")
        run = finetune.fit(
            data=Path(folder) / "images",
            schedule=PRESETS[way],
            weights="none" if weights is None else weights,
            run_dir=Path(folder) / "run",
            seed=seed,
            overrides=words,
        )
        accuracy = float(run.results.test.acc)
    torch.set_num_threads(threads)
    return accuracy
