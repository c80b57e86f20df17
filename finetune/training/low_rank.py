"""Low-rank adaptation of linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685), merged into their weights when a phase ends.

While a phase with ``parameters: lora`` trains, the weight of each linear layer of its backbone stages is ``W + up @ down``: ``W``
is frozen, ``up`` starts at zero and ``down`` at random, as in the paper and in PEFT (with ``lora_alpha`` equal to the rank).
Afterwards the sum takes the place of ``W``. So between phases, in bundles and in exports the network is the plain one.

PEFT itself is not used: it wraps the network in modules of its own, under other names, from which the stages, the cached
prefix and the checkpoints of a phase would have to be translated back; torch's parametrizations keep the layer in its place.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finetune.data.sampling import key
from finetune.errors import UserError
from finetune.models.classifier import Classifier
from finetune.phases import HEAD, ResolvedPhase

LORA = "lora"
# between the name of a layer and that of what parametrizes it
_INSIDE = ".parametrizations.weight.0."


class LowRank(nn.Module):
    """A weight (O, I) with a product of low rank added to it.

    Args:
        weight: Weight of the layer, for shape, type and device.
        rank: Rank R of the product.
        seed: Seed of the random half.
    """

    def __init__(self, weight: Tensor, *, rank: int, seed: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        bound = 1 / math.sqrt(inputs)
        down_RI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        self.down = nn.Parameter(down_RI.to(weight))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """Return the weight that the layer uses."""
        return weight_OI + self.up @ self.down


def adapted_layers(classifier: Classifier, *, train: Collection[str], rank: int) -> dict[str, nn.Linear]:
    """Return the linear layers of some backbone stages by name: those whose weight has more than ``rank`` rows and columns.

    Args:
        classifier: The network.
        train: Trainable stages.
        rank: Rank of the products.
    """
    return {
        name: module
        for name, module in classifier.named_modules()
        # a subclass may read its weight in ways of its own
        if type(module) is nn.Linear
        and min(module.weight.shape) > rank
        and (stage := classifier.stage_of(f"{name}.weight")) != HEAD
        and stage in train
    }


@contextmanager
def low_rank(classifier: Classifier, phase: ResolvedPhase, *, seed: int, merge: bool) -> Iterator[None]:
    """Adapt the linear layers of a phase with ``parameters: lora`` inside the block; of any other phase, do nothing.

    Args:
        classifier: The network.
        phase: The phase.
        seed: Seed of the run; the start of a layer depends on it, on the phase and on the layer's name alone.
        merge: Whether a block that ends without an error leaves the adapted weights behind; if not, the weights are those
            of before, to the bit.

    Raises:
        UserError: The phase trains no linear layer.
    """
    if phase.parameters != LORA:
        yield
        return
    layers = adapted_layers(classifier, train=phase.train, rank=phase.lora_rank)
    if not layers:
        raise UserError(
            f"schedule.phases.parameters='{LORA}': {classifier.backbone.name!r} has no linear layers of more than "
            f"lora_rank={phase.lora_rank} rows and columns in {', '.join(phase.train)}. Transformers and ConvNeXt have "
            "them. Set parameters=norms, or train other stages."
        )
    for name, layer in layers.items():
        adapter = LowRank(layer.weight, rank=phase.lora_rank, seed=key(seed, LORA, phase.name, name))
        parametrize.register_parametrization(layer, "weight", adapter)
    finished = False
    try:
        yield
        finished = True
    finally:
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=merge and finished)


def adapter_names(classifier: Classifier) -> frozenset[str]:
    """Return the names of the parameters that :func:`low_rank` has added, as in ``classifier.named_parameters()``."""
    return frozenset(name for name, _ in classifier.named_parameters() if _INSIDE in name)
