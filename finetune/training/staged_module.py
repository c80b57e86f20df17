"""The base of every module that trains stages: named optimizer groups, and the learning rate of each at every step."""

import lightning.pytorch as pl
import torch
from torch import nn

from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.training.freezing import tensors_of
from finetune.training.lr_schedules import scale
from finetune.training.param_groups import OptimizerFactory, check_cover, phase_param_groups

# prefix of the classifier's names in a module's state dict
PREFIX = "classifier."


def checkpoint_tensors(classifier: Classifier, phase: ResolvedPhase) -> dict[str, torch.Tensor]:
    """Return the weights and buffers of the stages that a phase trains, by their names in a checkpoint."""
    return {PREFIX + name: tensor for name, tensor in tensors_of(classifier, phase.train).items()}


class StagedModule(pl.LightningModule):
    """Trains the stages that a phase names, each at its own rate; subclasses add the steps.

    Args:
        classifier: Network whose stages train.
        phase: Stages to train, their rates and the learning-rate schedule.
        optimizer: Function that makes the optimizer from named groups.
        loss: Training loss, from logits (B, K) and targets.
        total_steps: Optimizer steps of the fit; 0 if only the Trainer will know them.
        warmup_steps: Optimizer steps of the linear rise at the start.
    """

    def __init__(
        self,
        classifier: Classifier,
        phase: ResolvedPhase,
        *,
        optimizer: OptimizerFactory,
        loss: nn.Module,
        total_steps: int = 0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.phase = phase
        self.loss = loss
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self._make_optimizer = optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer of the trainable parameters, in named groups that cover them exactly."""
        groups = phase_param_groups(self.classifier, self.phase)
        optimizer = self._make_optimizer(groups)
        check_cover(optimizer, self.classifier)
        return optimizer

    def plateau_factor(self) -> float:
        """Return the factor by which ``plateau`` has reduced the rates so far."""
        return 1.0

    def rates_at(self, step: int) -> dict[str, float]:
        """Return the learning rate of each stage at an optimizer step of this fit."""
        factor = scale(
            self.phase.lr_schedule,
            step=step,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            plateau_factor=self.plateau_factor(),
        )
        return {stage: rate * factor for stage, rate in self.phase.rates().items()}

    def set_rates(self) -> None:
        """Write the rates of the next step into the optimizer's groups."""
        rates = self.rates_at(self.trainer.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rates[group["stage"]]
