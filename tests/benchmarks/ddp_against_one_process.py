"""Two processes against one on the same job: finetune, and Lightning's BackboneFinetuning.

    uv run python -m tests.benchmarks.ddp_against_one_process

The job: one epoch of the head, then one epoch of everything, on the same batches of the same images, by SGD, BatchNorm in
evaluation mode throughout. Under DDP each batch is shared by two processes and weighted rightly, so both should end where
one process ends, up to the order in which sums are taken. Lightning's callback unfreezes inside one fit: the parameters that
were frozen when DDP wrapped the network are never synchronised (lightning#20340).
"""

import json
import os
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from safetensors.torch import load_file, save_file

from finetune.build import assemble
from finetune.config import compose
from finetune.data.datamodule import Batch
from finetune.training.quiet_lightning import quiet_lightning
from tests.conftest import TINY_RESNET10T, make_pets
from tests.runs import train_tiny
from tests.training.ranks import forked_ranks, said

RATE = 0.05
TWO = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]


def job(pets: Path) -> list[str]:
    """Overrides of the job."""
    rates = [f"schedule.phases.{n}.{name}={value}" for n in (0, 1) for name, value in (("lr", RATE), ("epochs", 1))]
    optimizer = ["optimizer=sgd", "schedule.lr_schedule=constant", "schedule.weight_decay=0", "schedule.restore=last"]
    # the network of the page that shows this, notebooks/06_is_it_really_frozen.ipynb
    return [
        "data=folder",
        f"data.root={pets}",
        *TINY_RESNET10T,
        "schedule=head_then_all",
        *rates,
        *optimizer,
    ]


class Plain(pl.LightningModule):
    """The usual module around a backbone and a head, as Lightning's callback expects it."""

    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = classifier.backbone
        self.classifier = classifier

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Mean loss over the whole batch, this process's share."""
        losses = torch.nn.functional.cross_entropy(self.classifier(batch.images), batch.targets, reduction="none")
        return losses.sum() * (batch.position.world / batch.position.global_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of what is trainable at the start, as the callback's documentation has it."""
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=RATE, momentum=0.9)


def with_callback(words: list[str], target: Path, *, world: int) -> None:
    """Train by Lightning's callback; each process writes its weights."""
    parts = assemble(compose(words))
    parts.classifier.eval()
    parts.data.begin_phase(name="all", batch_size=8, augment=parts.phases[0].augment)
    with quiet_lightning():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=world,
            strategy="ddp" if world > 1 else "auto",
            max_epochs=2,
            limit_val_batches=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=RATE)],
        )
        trainer.fit(Plain(parts.classifier), datamodule=parts.data)
    rank = os.environ.get("LOCAL_RANK", "0")
    save_file({n: t.contiguous() for n, t in parts.classifier.state_dict().items()}, f"{target}.{rank}.safetensors")


def apart(first: Path, second: Path) -> float:
    """Largest difference of a weight."""
    one, other = load_file(first), load_file(second)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """All four runs, and what they differ by."""
    words = [*job(make_pets(folder / "pets")), "keep=all"]
    output = folder / "out"
    runs = {
        "finetune": [lambda: train_tiny(words, folder / "ours1"), lambda: train_tiny([*words, *TWO], folder / "ours2")],
        "BackboneFinetuning": [
            lambda: with_callback(words, folder / "theirs1", world=1),
            lambda: with_callback(words, folder / "theirs2", world=2),
        ],
    }
    for jobs in runs.values():
        for world, run in enumerate(jobs, 1):
            if any(forked_ranks(run, output, world=world)):
                raise RuntimeError("\n".join(said(output, world=world)))
    start = folder / "ours1/phases/0-head/start.safetensors"
    return {
        "finetune": {
            "moved": apart(start, folder / "ours1/final.safetensors"),
            # each process of ours ends with the weights that it reads from the run's folder, so one comparison is all
            "two against one": apart(folder / "ours1/final.safetensors", folder / "ours2/final.safetensors"),
        },
        "BackboneFinetuning": {
            "moved": apart(start, folder / "theirs1.0.safetensors"),
            "two against one": apart(folder / "theirs1.0.safetensors", folder / "theirs2.0.safetensors"),
            "process against process": apart(folder / "theirs2.0.safetensors", folder / "theirs2.1.safetensors"),
        },
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name)), indent=2))
