"""Runs large batches through a network on a CPU a few images at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

# Activations of more pixels than this take blocks of memory that the allocator returns to the system after each use and
# that the system clears before the next. Images per second at 224 px on two cores, in batches of 64, 32, 16 and 8:
# ResNet-18 73, 78, 92, 108 in fp32 and 154, 177, 200, 194 in bf16; ResNet-50 21, 23, 28, 37 and 44, 49, 58, 77. At
# 32 px the whole batch is fastest. (tests/benchmarks/forward_batches.py)
PIXELS = 8 * 224 * 224


def run_in_chunks(net: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> Tensor:
    """Run a network on a batch: chunk by chunk on a CPU where no graph is built, otherwise at once.

    Args:
        net: Network in evaluation mode, so that its output for an image does not depend on the other images.
        images_BCHW: Input of the network, one image per row.
    """
    size = max(1, PIXELS // (images_BCHW.shape[-2] * images_BCHW.shape[-1]))
    if images_BCHW.device.type != "cpu" or len(images_BCHW) <= size or torch.is_grad_enabled():
        return net(images_BCHW)
    return torch.cat([net(part) for part in torch.split(images_BCHW, size)])
