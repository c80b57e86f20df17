"""The order of a network's activations in memory."""

import torch

from finetune.input_spec import InputSpec

# a training step of ResNet-18, 32 images, fp32, two cores: at 32, 48, 64 and 96 px it takes 46, 79, 108 and 232 ms with channels
# first, 63, 92, 127 and 205 ms with channels last (tests/benchmarks/channels_last.py)
_CHANNELS_FIRST_PX = 64


def memory_format_for(spec: InputSpec) -> torch.memory_format:
    """The faster order for images of a size: channels last, but for small images on a CPU."""
    small = min(spec.size) <= _CHANNELS_FIRST_PX and not torch.cuda.is_available()
    return torch.contiguous_format if small else torch.channels_last
