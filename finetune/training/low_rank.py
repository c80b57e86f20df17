"""Low-rank adaptation of linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685), merged into their weights when a phase ends.

A convolution of one pixel, without groups, is a linear layer too: the same product at every place. ConvNeXt has its MLPs in
either form (timm's ``conv_mlp``), and a ResNet has them in its bottlenecks and shortcuts. Its weight is (O, I, 1, 1).

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
from finetune.models.classifier import Classifier
from finetune.phases import HEAD, ResolvedPhase

LORA = "lora"
# between the name of a layer and that of what parametrizes it
_INSIDE = ".parametrizations.weight.0."


class LowRank(nn.Module):
    """A weight (O, I), or (O, I, 1, 1), with a product of low rank added to it.

    Args:
        weight: Weight of the layer, for shape, type and device.
        rank: Rank R of the product.
        seed: Seed of the random half.
    """

    def __init__(self, weight: Tensor, *, rank: int, seed: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape[:2]
        bound = 1 / math.sqrt(inputs)
        down_RI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
        self.down = nn.Parameter(down_RI.to(weight))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that the layer uses."""
        return weight + (self.up @ self.down).reshape(weight.shape)


def _is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies by its weight and does nothing else with it; a subclass may read it in other ways."""
    if type(module) is nn.Conv2d:
        return module.kernel_size == (1, 1) and module.groups == 1
    return type(module) is nn.Linear


def adapted_layers(classifier: Classifier, *, train: Collection[str], rank: int) -> dict[str, nn.Module]:
    """Return the linear layers of some backbone stages by name: those whose weight has more than ``rank`` rows and columns.

    Args:
        classifier: The network.
        train: Trainable stages.
        rank: Rank of the products.
    """
    return {
        name: module
        for name, module in classifier.named_modules()
        if _is_linear(module)
        and min(classifier.get_parameter(f"{name}.weight").shape[:2]) > rank
        and (stage := classifier.stage_of(f"{name}.weight")) != HEAD
        and stage in train
    }


@contextmanager
def low_rank(classifier: Classifier, phase: ResolvedPhase, *, seed: int, merge: bool) -> Iterator[None]:
    """Adapt the linear layers of a phase with ``parameters: lora`` inside the block.

    Of any other phase, and of one that trains the head alone, nothing is adapted.

    Args:
        classifier: The network.
        phase: The phase.
        seed: Seed of the run; the start of a layer depends on it, on the phase and on the layer's name alone.
        merge: Whether a block that ends without an error leaves the adapted weights behind; if not, the weights are those
            of before, to the bit.
    """
    if phase.parameters != LORA:
        yield
        return
    layers = adapted_layers(classifier, train=phase.train, rank=phase.lora_rank)
    for name, layer in layers.items():
        weight = classifier.get_parameter(f"{name}.weight")
        adapter = LowRank(weight, rank=phase.lora_rank, seed=key(seed, LORA, phase.name, name))
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
