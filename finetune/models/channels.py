"""Channel adaptation: feed images with one channel, or more than three, to a network pretrained on three.

In pretraining the network saw ``(x_c - mean_c) / std_c`` for three channels c, convolved with ``W_c``. For a grey image
g with replicated channels, that convolution can be written with two input channels, for any m and s::

    sum_c W_c * (g - mean_c) / std_c  =  W' * (g - m) / s  +  V * 1
    W' = sum_c W_c s / std_c          V  = sum_c W_c (m - mean_c) / std_c

The second input channel is the constant 1. Zero padding pads it with zeros just as it pads the image, so the equality
holds at the border too; with a bias in place of ``V * 1`` it would not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finetune.errors import UserError, type_in_words
from finetune.models.adaptations import PRETRAINED_CHANNELS, Pretraining, adaptation, adaptations_for

# B = batch, C = channels of the images, S = input channels of the stem, H/W = image height/width


def check_adapt(*, channels: int, adapt: str, native: int = PRETRAINED_CHANNELS) -> None:
    """Check that an adaptation exists for this number of channels.

    Args:
        channels: Number of channels of the images.
        adapt: Adaptation, one of :data:`finetune.models.adaptations.ADAPTATIONS`.
        native: Number of channels that the network takes without an adaptation.

    Raises:
        UserError: The adaptation is unknown, or does not exist for this number of channels.
    """
    adaptation(adapt)
    if channels in (PRETRAINED_CHANNELS, native):
        return
    valid = adaptations_for(channels)
    if adapt not in valid:
        raise UserError(
            f"input.adapt={adapt!r}: not defined for input.channels={channels}. "
            f"Choose {' or '.join(f'input.adapt={way}' for way in valid)}."
        )


class InputAdapter(nn.Module):
    """A module that normalises images on the scale 0 to 1 and gives the stem the channels it expects.

    Its constants are not part of the state dict, because the input specification gives them.

    Args:
        channels: Number of channels ``C`` of the images.
        adapt: Adaptation, one of :data:`finetune.models.adaptations.ADAPTATIONS`; for three channels only ``reinit`` has an
            effect.
        mean: Mean per channel that the pretrained network expects, one for each channel of its stem, scale 0 to 1.
        std: Standard deviation per channel that the pretrained network expects, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, channels: int, adapt: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        check_adapt(channels=channels, adapt=adapt, native=len(mean))
        self.channels = channels
        kind = adaptation(adapt)
        self.appends_one = kind.appends_one and channels == 1
        if channels not in (PRETRAINED_CHANNELS, len(mean)) and kind.statistics is not None:
            mean, std = kind.statistics(mean, channels), kind.statistics(std, channels)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Turn images on the scale 0 to 1, ``(B, C, H, W)``, into the input of the stem, ``(B, S, H, W)``.

        ``expand`` needs no copy: one channel is normalised three ways by broadcasting.
        """
        images_BSHW = (images_BCHW - self.mean) / self.std
        if self.appends_one:
            return torch.cat([images_BSHW, torch.ones_like(images_BSHW)], dim=1)
        return images_BSHW


def stem_channels(*, channels: int, adapt: str) -> int:
    """Return the number of input channels ``S`` that the stem has after :func:`adapt_stem`.

    >>> stem_channels(channels=1, adapt="expand"), stem_channels(channels=1, adapt="fold")
    (3, 2)
    """
    kind = adaptation(adapt)
    if channels == PRETRAINED_CHANNELS or kind.kernel is None:
        return PRETRAINED_CHANNELS
    return channels + 1 if kind.appends_one else channels


def adapt_stem(
    conv: nn.Conv2d, *, channels: int, adapt: str, mean: Sequence[float], std: Sequence[float], seed: int
) -> None:
    """Change the first convolution in place so that it takes the output of :class:`InputAdapter`.

    ``expand`` leaves it as it is. ``fold`` starts as the same function of a grey image (see the top of this file);
    after that the two kernels train independently. For the others see :mod:`finetune.models.adaptations`.

    Args:
        conv: First convolution, with three input channels and one group.
        channels: Number of channels of the images.
        adapt: Adaptation, one of :data:`finetune.models.adaptations.ADAPTATIONS`.
        mean: Mean per channel of the pretrained input.
        std: Standard deviation per channel of the pretrained input.
        seed: Seed of the kernel that ``reinit`` draws.

    Raises:
        UserError: Channels and adaptation cannot be combined, or the convolution cannot be adapted this way.
    """
    check_adapt(channels=channels, adapt=adapt)
    kind = adaptation(adapt)
    if kind.kernel is None or (channels == PRETRAINED_CHANNELS and not kind.is_new):
        return
    if conv.in_channels != PRETRAINED_CHANNELS or conv.groups != 1:
        raise UserError(
            f"input.adapt={adapt!r}: needs a first convolution with three input channels in one group. This one has "
            f"{conv.in_channels} in {conv.groups}."
        )
    if not kind.is_new and type(conv).__name__ not in ("Conv2d", "Conv2dSame"):
        # timm's StdConv2d and similar layers standardise a kernel over all input channels: no sum of kernels equals it
        raise UserError(
            f"input.adapt={adapt!r}: the first layer is {type_in_words(conv)}, not a plain convolution, "
            f"so its kernels cannot be combined. Use input.adapt={'expand' if channels == 1 else 'reinit'}."
        )
    new = kind.kernel(conv.weight.detach(), channels, Pretraining(mean=mean, std=std), seed)
    conv.in_channels = new.shape[1]
    conv.weight = nn.Parameter(new.contiguous(), requires_grad=conv.weight.requires_grad)
