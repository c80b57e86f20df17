"""Exponential moving average of the trainable stages (Polyak averaging)."""

import torch

from finetune.models.classifier import Classifier
from finetune.training.freezing import tensors_of


class StageEma:
    """Keeps averages of what a phase trains; frozen stages are not in it, so they cannot drift.

    Lightning's ``EMAWeightAveraging`` copies the whole module, the frozen part included; this holds only the trainable
    stages, as plain tensors that a checkpoint takes.

    Args:
        classifier: The network.
        stages: Trainable stages.
        decay: Share of the average that survives a step.
    """

    def __init__(self, classifier: Classifier, *, stages: tuple[str, ...], decay: float) -> None:
        self._classifier, self._stages, self._decay = classifier, stages, decay
        self.averages = {name: tensor.clone() for name, tensor in tensors_of(classifier, stages).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after an optimizer step into the average; whole numbers are copied."""
        for name, tensor in tensors_of(self._classifier, self._stages).items():
            average = self.averages[name]
            if average.device != tensor.device:
                average = self.averages[name] = average.to(tensor.device)
            if tensor.is_floating_point():
                average.lerp_(tensor, 1 - self._decay)
            else:
                average.copy_(tensor)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Put the averages in the place of the weights."""
        for name, tensor in tensors_of(self._classifier, self._stages).items():
            tensor.copy_(self.averages[name])

    @torch.no_grad()
    def swap_in(self) -> dict[str, torch.Tensor]:
        """Averages into the network; returns the raw weights for :meth:`swap_out`."""
        raw = {name: tensor.clone() for name, tensor in tensors_of(self._classifier, self._stages).items()}
        self.copy_to_model()
        return raw

    @torch.no_grad()
    def swap_out(self, raw: dict[str, torch.Tensor]) -> None:
        """The raw weights back."""
        for name, tensor in tensors_of(self._classifier, self._stages).items():
            tensor.copy_(raw[name])
