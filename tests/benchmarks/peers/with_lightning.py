"""What programs on Lightning share: the module, and one fit with whatever callbacks."""

import time
from collections.abc import Callable

import lightning as L  # noqa: N812 (the name that its own pages use)
import torch
from job import WEIGHT_DECAY, Job
from torch import Tensor, nn
from torch.optim import Optimizer
from with_torchvision import loaders, network


class TransferModule(L.LightningModule):
    """A backbone and a head, as the pages of Lightning's finetuning callbacks ask for."""

    def __init__(self, job: Job, parameters: Callable[["TransferModule"], list[nn.Parameter]]) -> None:
        super().__init__()
        model = network(job)
        # stem, layer1 .. layer4, pool
        self.backbone = nn.Sequential(*list(model.children())[:-1])
        self.head = nn.Sequential(nn.Flatten(), model.fc)
        self.lr, self.chosen = job.phases[0].lr, parameters

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.backbone(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The accuracy of a batch; Lightning takes the mean over images."""
        logits = self(batch[0])
        right = (logits.argmax(1) == batch[1]).float().mean()
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), batch_size=len(batch[1]))
        self.log("val_acc", right, prog_bar=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> Optimizer:
        """AdamW on what the program chose."""
        return torch.optim.AdamW(self.chosen(self), lr=self.lr, weight_decay=WEIGHT_DECAY)


def requires_grad(module: TransferModule) -> list[nn.Parameter]:
    """What the callback left trainable."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def fit(job: Job, module: TransferModule, callbacks: list[L.Callback]) -> None:
    """Train with the Trainer's defaults and answer."""
    train, valid = loaders(job)
    trainer = L.Trainer(accelerator="cpu", max_epochs=job.epochs, callbacks=callbacks, default_root_dir=job.scratch)
    began = time.perf_counter()
    trainer.fit(module, train, valid)
    job.done(accuracy=float(trainer.callback_metrics["val_acc"]), train_s=time.perf_counter() - began)
