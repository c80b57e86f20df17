"""finetuning-scheduler, on Lightning, with an explicit schedule whose phases end by epoch.

A phase's rate is that of what it adds: the groups of earlier phases keep theirs.
"""

import lightning as L  # noqa: N812 (the name that its own pages use)
from finetuning_scheduler import FinetuningScheduler
from job import job
from with_lightning import TransferModule, fit, requires_grad

# children of a torchvision ResNet in the backbone: 0 conv1, 1 bn1, 4 to 7 layer1 to layer4
PARAMETERS = {"head": ["head.*"], "top": ["backbone.7.*"], "all": ["backbone.[0-6].*"]}


def main() -> None:
    """Train and answer."""
    told = job()
    L.seed_everything(told.seed)
    schedule, ends = {}, 0
    for number, phase in enumerate(told.phases):
        # a transition happens at the first epoch whose number, from 0, has reached the limit
        ends += phase.epochs
        schedule[number] = {"params": PARAMETERS[phase.train], "max_transition_epoch": ends, "lr": phase.lr}
    callback = FinetuningScheduler(ft_schedule=schedule, epoch_transitions_only=True, restore_best=False)
    fit(told, TransferModule(told, requires_grad), [callback])


if __name__ == "__main__":
    main()
