"""The frozen stages before the trainable part, which compute the activations for the cache without an autograd graph."""

import gc

import torch
from torch import Tensor

from finetune.models.batch_norm_folding import fold_batch_norm
from finetune.models.chunks import run_in_chunks
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for


class Prefix:
    """Maps uint8 images to the activations after a stage, without an autograd graph.

    In half precision BatchNorm is folded into the convolutions if torch.fx can trace the network; in single precision it is
    not folded, so that the activations are bitwise identical to the network's.
    """

    def __init__(self, classifier: Classifier, last_stage: str, *, fold: bool) -> None:
        self._classifier = classifier
        self._net, _ = classifier.backbone.split(last_stage)
        self.folded = False
        if fold:
            spec = classifier.input_spec
            device = next(classifier.parameters()).device
            example = torch.randint(0, 256, (2, spec.channels, *spec.size), dtype=torch.uint8, device=device)
            with torch.autocast(device.type, enabled=False):
                self._net, self.folded = fold_batch_norm(self._net, classifier.prepare(example))
            self._net.to(memory_format=memory_format_for(spec))
            # the intermediate copies are in reference cycles, and each is as large as the network
            gc.collect()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the activations of a batch on the images' device; not inference tensors, so that later stages can train."""
        return run_in_chunks(lambda part: self._net(self._classifier.prepare(part)), images)


def in_half_precision(device: torch.device) -> bool:
    """Return whether the current precision context multiplies matrices in half precision."""
    one = torch.ones(1, 1, device=device)
    return one.mm(one).dtype != torch.float32
