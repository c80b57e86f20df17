"""Channel adaptation: feeds images with one channel, or more than three, to a network pretrained on three.

In pretraining the network saw ``(x_c - mean_c) / std_c`` for three channels c, convolved with ``W_c``. For a grey image
g with replicated channels, that convolution can be written with two input channels, for any m and s::

    sum_c W_c * (g - mean_c) / std_c  =  W' * (g - m) / s  +  V * 1
    W' = sum_c W_c s / std_c          V  = sum_c W_c (m - mean_c) / std_c

The second input channel is the constant 1. Zero padding pads it with zeros just as it pads the image, so the equality
holds at the border too; with a bias in place of ``V * 1`` it would not.
"""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from finetune.errors import UserError, did_you_mean

# B = batch, C = channels of the user's image, S = input channels of the stem, H/W = image height/width

ADAPTATIONS = ("expand", "fold", "sum", "reinit", "tile")
PRETRAINED_CHANNELS = 3


def check_adapt(*, channels: int, adapt: str, native: int = PRETRAINED_CHANNELS) -> None:
    """Check that an adaptation exists for this number of channels.

    Args:
        channels: Number of channels of the user's images.
        adapt: Adaptation, one of :data:`ADAPTATIONS`.
        native: Number of channels that the network takes itself.

    Raises:
        UserError: The adaptation is unknown, or does not exist for this number of channels.
    """
    if adapt not in ADAPTATIONS:
        raise UserError(
            f"input.adapt={adapt!r}: unknown. Ways: {', '.join(ADAPTATIONS)}.{did_you_mean(adapt, ADAPTATIONS)}"
        )
    if channels in (PRETRAINED_CHANNELS, native):
        return
    valid = ("expand", "fold", "sum", "reinit") if channels == 1 else ("tile", "reinit")
    if adapt not in valid:
        raise UserError(
            f"input.adapt={adapt!r}: not defined for input.channels={channels}. "
            f"Choose {' or '.join(f'input.adapt={way}' for way in valid)}."
        )


class InputAdapter(nn.Module):
    """A module that normalises images on the scale 0 to 1 and gives the stem the channels it expects.

    Its constants are not part of the state dict, because the input specification gives them.

    Args:
        channels: Number of channels ``C`` of the user's images.
        adapt: Adaptation, one of :data:`ADAPTATIONS`; it has no effect for three channels, except ``reinit``.
        mean: Mean per channel that the pretrained network expects, one for each channel of its stem, scale 0 to 1.
        std: Standard deviation per channel that the pretrained network expects, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, channels: int, adapt: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        check_adapt(channels=channels, adapt=adapt, native=len(mean))
        self.channels = channels
        self.appends_one = adapt == "fold" and channels == 1
        if channels not in (PRETRAINED_CHANNELS, len(mean)) and adapt != "expand":
            mean, std = adapted_statistics(channels=channels, adapt=adapt, mean=mean, std=std)
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


def adapted_statistics(
    *, channels: int, adapt: str, mean: Sequence[float], std: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation for ``channels`` channels: cycled for ``tile``, else the average of three."""
    mean, std = _single(mean), _single(std)
    if adapt == "tile":
        return [mean[c % len(mean)] for c in range(channels)], [std[c % len(std)] for c in range(channels)]
    return _single([fmean(mean)] * channels), _single([fmean(std)] * channels)


def _single(values: Sequence[float]) -> list[float]:
    """Round to single precision, so that kernels folded in double precision use the constants of the buffers."""
    rounded: list[float] = torch.tensor(values, dtype=torch.float32).tolist()
    return rounded


def stem_channels(*, channels: int, adapt: str) -> int:
    """Return the number of input channels ``S`` that the stem has after :func:`adapt_stem`.

    >>> stem_channels(channels=1, adapt="expand"), stem_channels(channels=1, adapt="fold")
    (3, 2)
    """
    if channels == PRETRAINED_CHANNELS or adapt == "expand":
        return PRETRAINED_CHANNELS
    return 2 if adapt == "fold" else channels


def adapt_stem(
    conv: nn.Conv2d, *, channels: int, adapt: str, mean: Sequence[float], std: Sequence[float], seed: int
) -> None:
    """Change the first convolution in place so that it takes the output of :class:`InputAdapter`.

    ``expand`` leaves it as it is. ``fold`` starts as the same function of a grey image (see the top of this file);
    after that the two kernels train independently. ``sum`` is timm's rule (``adapt_input_conv``), exact only if mean
    and std are the same for all channels. ``tile`` repeats the kernels over n channels, scaled by 3/n, which is timm's
    rule too. ``reinit`` draws a new kernel (He et al. 2015, fan-out).

    Args:
        conv: First convolution, with three input channels and one group.
        channels: Number of channels of the user's images.
        adapt: Adaptation, one of :data:`ADAPTATIONS`.
        mean: Mean per channel of the pretrained input.
        std: Standard deviation per channel of the pretrained input.
        seed: Seed of the kernel that ``reinit`` draws.

    Raises:
        UserError: Channels and adaptation cannot be combined, or the convolution cannot be adapted this way.
    """
    check_adapt(channels=channels, adapt=adapt)
    if adapt != "reinit" and (adapt == "expand" or channels == PRETRAINED_CHANNELS):
        return
    if conv.in_channels != PRETRAINED_CHANNELS or conv.groups != 1:
        raise UserError(
            f"input.adapt={adapt!r}: needs a first convolution with three input channels in one group. This one has "
            f"{conv.in_channels} in {conv.groups}."
        )
    if adapt != "reinit" and type(conv).__name__ not in ("Conv2d", "Conv2dSame"):
        # timm's StdConv2d and similar layers standardise a kernel over all input channels: no sum of kernels equals it
        raise UserError(
            f"input.adapt={adapt!r}: the first layer is a {type(conv).__name__}, not a plain convolution, "
            f"so its kernels cannot be combined. Use input.adapt={'expand' if channels == 1 else 'reinit'}."
        )
    weight = conv.weight.detach()
    if adapt == "fold":
        new = _folded(weight, mean=mean, std=std)
    elif adapt == "sum":
        new = weight.sum(dim=1, keepdim=True)
    elif adapt == "tile":
        new = weight[:, [c % PRETRAINED_CHANNELS for c in range(channels)]] * (PRETRAINED_CHANNELS / channels)
    else:
        new = weight.new_empty(weight.shape[0], channels, *weight.shape[2:])
        generator = torch.Generator().manual_seed(seed)
        nn.init.kaiming_normal_(new, mode="fan_out", nonlinearity="relu", generator=generator)
    conv.in_channels = new.shape[1]
    conv.weight = nn.Parameter(new.contiguous(), requires_grad=conv.weight.requires_grad)


def _folded(weight: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute the kernels ``[W', V]`` in double precision."""
    (middle,), (spread,) = adapted_statistics(channels=1, adapt="fold", mean=mean, std=std)
    mean_C = torch.tensor(_single(mean), dtype=torch.float64).view(1, -1, 1, 1)
    std_C = torch.tensor(_single(std), dtype=torch.float64).view(1, -1, 1, 1)
    wide = weight.double()
    image = (wide * (spread / std_C)).sum(dim=1)
    one = (wide * ((middle - mean_C) / std_C)).sum(dim=1)
    return torch.stack([image, one], dim=1).to(weight.dtype)
