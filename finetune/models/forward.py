"""BatchNorm folded into convolutions, where nothing in front of it trains: frozen prefixes, and inference."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetune.input_spec import InputSpec
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for

# of the largest output, in single precision: a copy that differs by more is not taken
TOLERANCE = 1e-4


@torch.no_grad()
def folded(net: nn.Module, example: Tensor) -> tuple[nn.Module, bool]:
    """A copy with BatchNorm folded into convolutions, or the network itself where that cannot be done.

    Args:
        net: In evaluation mode.
        example: An input; the copy is taken only where it computes the same, within ``TOLERANCE``.

    Returns:
        The network to run, and whether it was folded.
    """
    if not _has_batch_norm(net):
        return net, False
    from torch.fx.experimental.optimization import fuse

    try:
        fused: nn.Module = fuse(net)
        expected, found = net(example), fused(example)
    except Exception:  # torch.fx raises its own errors and any that a network's code raises under tracing
        return net, False
    if float((expected - found).abs().max()) > TOLERANCE * float(expected.abs().max()):
        return net, False
    return fused, True


def _has_batch_norm(net: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def optimize_for_inference(net: nn.Module, spec: InputSpec, *, prepare: Callable[[Tensor], Tensor]) -> nn.Module:
    """A network that computes the same as one that will not train any more, faster; the given one is left as it is.

    In fp32 on two cores, batches of eight images of 224 px, with its weights in the faster order: ResNet-18 1.66 times as fast
    as it was loaded (1.55 to 1.76 in 15 turns), ResNet-50 1.52 (1.43 to 1.55); outputs differ by 5e-7 of the largest one
    (``tests/benchmarks/inference_net.py``).

    Args:
        net: In evaluation mode.
        spec: Of the images.
        prepare: Makes their uint8 ``(B, C, H, W)`` the network's input.
    """
    if not _has_batch_norm(net):
        return net
    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (2, spec.channels, *spec.size), dtype=torch.uint8, generator=generator)
    fused, was_folded = folded(net, prepare(example.to(next(net.parameters()).device)))
    # a copy may be put into another order
    return fused.to(memory_format=memory_format_for(spec)) if was_folded else net


def fast_logits(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """From uint8 images ``(B, C, H, W)`` to logits ``(B, K)``, for a classifier that will not train any more.

    Args:
        classifier: In evaluation mode; its weights are put into the faster order in memory.
    """
    classifier.to(memory_format=memory_format_for(classifier.input_spec))
    backbone = classifier.backbone
    features, _ = backbone.split(backbone.stages[-1])
    net = optimize_for_inference(features, classifier.input_spec, prepare=classifier.prepare)

    def logits(images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = classifier.head(net(classifier.prepare(images_BCHW)))
        return logits_BK

    return logits
