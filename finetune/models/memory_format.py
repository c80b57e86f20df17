"""The memory format of a network's activations."""

import torch

from finetune.input_spec import InputSpec

# a training step of ResNet-18 with 32 images in fp32 on two cores takes 46, 79, 108 and 232 ms at 32, 48, 64 and 96 px
# with channels first, and 63, 92, 127 and 205 ms with channels last (tests/benchmarks/channels_last.py)
_CHANNELS_FIRST_PX = 64


def memory_format_for(spec: InputSpec) -> torch.memory_format:
    """Return the faster memory format for images of a size: channels last, except for small images on a CPU."""
    small = min(spec.size) <= _CHANNELS_FIRST_PX and not torch.cuda.is_available()
    return torch.contiguous_format if small else torch.channels_last
