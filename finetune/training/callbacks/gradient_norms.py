"""Measure the gradient norm of each stage; the norms stay on the device until the epoch ends."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm

from finetune.models.classifier import Classifier


class GradientNorms(Callback):
    """Averages each trainable stage's gradient norm over every ``every``-th optimizer step of an epoch.

    Norms are measured before clipping. A step whose norm is not finite (the first steps of mixed precision, while its loss
    scale settles) does not count.

    Args:
        classifier: Network whose gradient flags are set.
        stages: Stages to measure.
        every: Optimizer steps from one measurement to the next; the first step of an epoch is measured.
    """

    def __init__(self, classifier: Classifier, *, stages: Collection[str], every: int = 8) -> None:
        self._parameters: dict[str, list[torch.nn.Parameter]] = {stage: [] for stage in stages}
        for name, parameter in classifier.named_parameters():
            if parameter.requires_grad and (stage := classifier.stage_of(name)) in self._parameters:
                self._parameters[stage].append(parameter)
        self._every, self._steps = every, 0
        # for each stage the sum and the number of norms, (S, 2); None until the device is known
        self._sums: torch.Tensor | None = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the norms before Lightning clips the gradients."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # a fused optimizer divides by the scale of the loss in its own step; for any other, Lightning has divided
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            self.before_step(scale=scaler.get_scale)
        else:
            self.before_step()

    def before_step(self, *, scale: Callable[[], float] | None = None) -> None:
        """Measure the norms if a measurement is due, without waiting for the device.

        Args:
            scale: Function that returns the factor by which the gradients are still multiplied, and waits; None for 1.
        """
        if self._steps % self._every == 0:
            norms = [get_total_norm([p.grad for p in of if p.grad is not None]) for of in self._parameters.values()]
            device = next(p.device for of in self._parameters.values() for p in of)
            norms_S = torch.stack([norm.to(device, torch.float32) for norm in norms])
            if scale is not None:
                norms_S /= scale()
            finite = norms_S.isfinite()
            measured = torch.stack([torch.where(finite, norms_S, 0), finite.float()], dim=1)
            self._sums = measured if self._sums is None else self._sums.to(device) + measured
        self._steps += 1

    def epoch(self) -> dict[str, float]:
        """Return the mean norm of each stage over the epoch, and reset; this makes one transfer from the device."""
        sums = self._sums.tolist() if self._sums is not None else []
        self._sums, self._steps = None, 0
        return {stage: total / count for stage, (total, count) in zip(self._parameters, sums, strict=False) if count}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint inside an epoch."""
        return {"steps": self._steps, "sums": None if self._sums is None else self._sums.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums."""
        self._steps, self._sums = int(state_dict["steps"]), state_dict["sums"]
