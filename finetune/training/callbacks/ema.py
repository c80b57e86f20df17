"""Exponential moving average of the trainable stages over the optimizer steps (Polyak averaging)."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from finetune.models.classifier import Classifier
from finetune.training.freezing import tensors_of
from finetune.training.staged_module import PREFIX


def decay_at(step: int, *, most: float) -> float:
    """Return the decay of the average at a step: ``1 - step ** (-2 / 3)``, at most ``most``.

    The ramp of timm's ``ModelEmaV3(use_warmup=True)``: the first step is copied, as in PyTorch's ``AveragedModel``; 0.9999
    is reached after a million steps.

    >>> [round(decay_at(step, most=0.9999), 4) for step in (1, 8, 88, 1000, 10**7)]
    [0.0, 0.75, 0.9495, 0.99, 0.9999]
    """
    return min(most, 1 - math.pow(step, -2 / 3))


class StageEma(Callback):
    """Averages the trainable stages of a phase, and validates the averages; frozen stages are left out and cannot drift.

    Lightning's ``EMAWeightAveraging`` copies the whole module with its frozen part; this holds only the trainable stages, as
    plain tensors that a checkpoint takes.

    The decay rises to its final value (:func:`decay_at`), so that a short phase does not end with its initial weights.

    Args:
        classifier: Network at the start of the phase.
        stages: Trainable stages.
        decay: Decay of the average per optimizer step, after its rise.
    """

    def __init__(self, classifier: Classifier, *, stages: tuple[str, ...], decay: float) -> None:
        self._classifier, self._stages, self._decay = classifier, stages, decay
        self.averages = {name: tensor.clone() for name, tensor in tensors_of(classifier, stages).items()}
        # the weights themselves, while the averages are in their place
        self._raw: dict[str, torch.Tensor] | None = None
        # number of optimizer steps that the averages include
        self._steps = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the weights after an optimizer step; copy integer tensors.

        Args:
            step: Optimizer steps of the phase so far, from 1.
        """
        decay = decay_at(step, most=self._decay)
        for name, tensor in tensors_of(self._classifier, self._stages).items():
            average = self.averages[name]
            if average.device != tensor.device:
                average = self.averages[name] = average.to(tensor.device)
            if tensor.is_floating_point():
                average.lerp_(tensor, 1 - decay)
            else:
                average.copy_(tensor)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the weights by the averages."""
        for name, tensor in tensors_of(self._classifier, self._stages).items():
            tensor.copy_(self.averages[name])

    @torch.no_grad()
    def swap_in(self) -> None:
        """Replace the weights by the averages until :meth:`swap_out`."""
        self._raw = {name: tensor.clone() for name, tensor in tensors_of(self._classifier, self._stages).items()}
        self.copy_to_model()

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the weights back, if the averages are in their place."""
        if self._raw is not None:
            for name, tensor in tensors_of(self._classifier, self._stages).items():
                tensor.copy_(self._raw[name])
            self._raw = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from where the fit starts or resumes."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Average after each optimizer step; with accumulation, not every batch makes one."""
        self._catch_up(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averages in place for a validation inside a fit."""
        if trainer.state.fn == "fit":
            self.swap_in()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back for training."""
        self.swap_out()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the averages beside the weights.

        This is done here and not in ``state_dict``, because another callback may write a checkpoint before this one has seen
        the last step, or while the averages are in the place of the weights.
        """
        self._catch_up(trainer)
        checkpoint["callbacks"][self.state_key] = {"averages": self.averages}
        checkpoint["state_dict"] |= {PREFIX + name: tensor for name, tensor in (self._raw or {}).items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the averages."""
        saved = checkpoint["callbacks"][self.state_key]["averages"]
        self.averages = {name: tensor.to(pl_module.device) for name, tensor in saved.items()}

    def _catch_up(self, trainer: Trainer) -> None:
        if trainer.global_step > self._steps:
            self.update(trainer.global_step)
            self._steps = trainer.global_step
