"""Folds BatchNorm into convolutions for networks that do not train: frozen prefixes and inference."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from finetune.file_errors import out_of_memory
from finetune.input_spec import InputSpec
from finetune.models.classifier import Classifier
from finetune.models.memory_format import memory_format_for

# largest accepted difference of a folded copy, relative to the largest output, in single precision
TOLERANCE = 1e-4


@torch.no_grad()
def fold_batch_norm(net: nn.Module, example: Tensor) -> tuple[nn.Module, bool]:
    """Return a copy with BatchNorm folded into the convolutions, or the network itself if folding is impossible.

    Args:
        net: Network in evaluation mode.
        example: Example input; the copy is used only if it computes the same output within ``TOLERANCE``.

    Returns:
        The network to run, and whether it was folded.
    """
    if not _has_batch_norm(net):
        return net, False
    from torch.fx.experimental.optimization import fuse

    try:
        fused: nn.Module = fuse(net)
        expected, actual = net(example), fused(example)
    except Exception as error:  # torch.fx raises its own errors and those that the network's code raises under tracing
        if out_of_memory(error):
            raise
        return net, False
    if float((expected - actual).abs().max()) > TOLERANCE * float(expected.abs().max()):
        return net, False
    return fused, True


def _has_batch_norm(net: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


def optimize_for_inference(net: nn.Module, spec: InputSpec, *, prepare: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a faster network that computes the same outputs, for inference; leave the given one unchanged.

    In fp32 on two cores, with batches of eight images of 224 px and the weights in the faster memory format, ResNet-18
    is 1.66 times as fast as loaded (1.55 to 1.76 in 15 rounds), ResNet-50 1.52 times (1.43 to 1.55). Outputs differ by
    5e-7 of the largest one (``tests/benchmarks/inference_net.py``).

    Args:
        net: Network in evaluation mode.
        spec: Input specification of the images.
        prepare: Function from uint8 images ``(B, C, H, W)`` to the network's input.
    """
    if not _has_batch_norm(net):
        return net
    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (2, spec.channels, *spec.size), dtype=torch.uint8, generator=generator)
    fused, was_folded = fold_batch_norm(net, prepare(example.to(next(net.parameters()).device)))
    # the copy may change its memory format; the given network may not
    return fused.to(memory_format=memory_format_for(spec)) if was_folded else net


def fast_features(classifier: Classifier) -> Callable[[Tensor], Tensor]:
    """Return a fast function from uint8 images ``(B, C, H, W)`` to features ``(B, D)``, for inference.

    Args:
        classifier: Classifier in evaluation mode; its weights are converted to the faster memory format.
    """
    classifier.to(memory_format=memory_format_for(classifier.input_spec))
    backbone = classifier.backbone
    features, _ = backbone.split(backbone.stages[-1])
    net = optimize_for_inference(features, classifier.input_spec, prepare=classifier.prepare)

    def embed(images_BCHW: Tensor) -> Tensor:
        features_BD: Tensor = net(classifier.prepare(images_BCHW))
        return features_BD

    return embed
