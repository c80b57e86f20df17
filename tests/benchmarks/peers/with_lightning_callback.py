"""Lightning with its own callbacks: ``BackboneFinetuning`` for a frozen run, a ``BaseFinetuning`` for a staged one.

Both at their defaults, so BatchNorm of frozen stages keeps training (``train_bn=True``).
"""

from itertools import accumulate

import lightning as L  # noqa: N812 (the name that its own pages use)
from job import Phase, job
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch.optim import Optimizer
from with_lightning import TransferModule, fit, requires_grad


class Staged(BaseFinetuning):
    """The head, then the last stage of the backbone, then all of it."""

    def __init__(self, phases: tuple[Phase, ...]) -> None:
        super().__init__()
        starts = [0, *accumulate(phase.epochs for phase in phases)]
        self.phases = dict(zip(starts, phases, strict=False))

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        """All but the head."""
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """At the start of an epoch."""
        phase = self.phases.get(epoch)
        if phase is None or phase.train == "head":
            return
        # the children of a torchvision ResNet: layer4 and the pool are the last two
        modules = pl_module.backbone[-2] if phase.train == "top" else pl_module.backbone[:-2]
        self.unfreeze_and_add_param_group(modules, optimizer, lr=phase.lr)
        for group in optimizer.param_groups:
            group["lr"] = phase.lr


def main() -> None:
    """Train and answer."""
    told = job()
    L.seed_everything(told.seed)
    if told.mode == "staged":
        fit(told, TransferModule(told, requires_grad), [Staged(told.phases)])
    elif told.mode == "full":
        fit(told, TransferModule(told, lambda module: list(module.parameters())), [])
    else:
        callback = BackboneFinetuning(unfreeze_backbone_at_epoch=told.epochs + 1)
        fit(told, TransferModule(told, lambda module: list(module.head.parameters())), [callback])


if __name__ == "__main__":
    main()
