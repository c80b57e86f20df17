"""Channel adaptations by name: how a stem that was pretrained on three channels takes images of another number.

A new one is a function and a line in :data:`ADAPTATIONS`; :mod:`finetune.models.channels` applies them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from finetune.errors import UserError, did_you_mean

if TYPE_CHECKING:  # a configuration is checked against this table before torch is loaded
    from torch import Tensor

# B = batch, C = channels of the images, S = input channels of the stem

PRETRAINED_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a stem was pretrained on.

    Args:
        mean: Mean of each channel, scale 0 to 1.
        std: Standard deviation of each channel.
    """

    mean: Sequence[float]
    std: Sequence[float]


Statistics = Callable[[Sequence[float], int], list[float]]


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """A value of ``input.adapt``.

    Args:
        kernel: Returns the new kernel of the first convolution from the old one, the number of channels of the images, what
            the stem was pretrained on, and a seed; None leaves the convolution as it is.
        statistics: Returns the mean or the standard deviation for that number of channels from those of the pretrained ones;
            None leaves them as they are.
        grey: Whether the adaptation is defined for one channel.
        many: Whether it is defined for two channels, or more than three.
        appends_one: Whether the constant 1 is appended to a grey image as a second channel.
        is_new: Whether the stem starts with random weights, even for three channels.
        exact: Whether a grey image gives the same logits as three equal channels; if not, the difference is measured.
        needs_channels: Whether ``input.channels`` must be given as a number.
        keeps_native: Whether it changes nothing in a user-supplied network that already takes the images' channels.
    """

    kernel: "Callable[[Tensor, int, Pretraining, int], Tensor] | None" = None
    statistics: Statistics | None = None
    grey: bool = False
    many: bool = False
    appends_one: bool = False
    is_new: bool = False
    exact: bool = True
    needs_channels: bool = False
    keeps_native: bool = False


def adaptation(name: str) -> Adaptation:
    """Return the adaptation of a name.

    Raises:
        UserError: There is no such adaptation.
    """
    if name not in ADAPTATIONS:
        raise UserError(
            f"input.adapt={name!r}: not known. Choices: {', '.join(ADAPTATIONS)}.{did_you_mean(name, ADAPTATIONS)}"
        )
    return ADAPTATIONS[name]


def adaptations_for(channels: int) -> list[str]:
    """Return the adaptations that are defined for a number of channels other than three, those without random weights first.

    >>> adaptations_for(1), adaptations_for(5)
    (['expand', 'fold', 'sum', 'reinit'], ['tile', 'reinit'])
    """
    fitting = [name for name, kind in ADAPTATIONS.items() if (kind.grey if channels == 1 else kind.many)]
    return sorted(fitting, key=lambda name: ADAPTATIONS[name].is_new)


def single(values: Sequence[float]) -> list[float]:
    """Round to single precision, so that kernels folded in double precision use the same constants as the buffers."""
    import torch

    rounded: list[float] = torch.tensor(values, dtype=torch.float32).tolist()
    return rounded


def _average(values: Sequence[float], channels: int) -> list[float]:
    return single([fmean(single(values))] * channels)


def _cycle(values: Sequence[float], channels: int) -> list[float]:
    rounded = single(values)
    return [rounded[channel % len(rounded)] for channel in range(channels)]


def _fold(weight: "Tensor", channels: int, pretraining: Pretraining, seed: int) -> "Tensor":
    """Compute the kernels ``[W', V]`` of :mod:`finetune.models.channels` in double precision."""
    import torch

    (middle,), (spread,) = _average(pretraining.mean, 1), _average(pretraining.std, 1)
    mean_C = torch.tensor(single(pretraining.mean), dtype=torch.float64).view(1, -1, 1, 1)
    std_C = torch.tensor(single(pretraining.std), dtype=torch.float64).view(1, -1, 1, 1)
    wide = weight.double()
    image = (wide * (spread / std_C)).sum(dim=1)
    one = (wide * ((middle - mean_C) / std_C)).sum(dim=1)
    return torch.stack([image, one], dim=1).to(weight.dtype)


def _sum(weight: "Tensor", channels: int, pretraining: Pretraining, seed: int) -> "Tensor":
    """Sum the kernels, timm's rule (``adapt_input_conv``): exact only if mean and std are the same for all channels."""
    return weight.sum(dim=1, keepdim=True)


def _tile(weight: "Tensor", channels: int, pretraining: Pretraining, seed: int) -> "Tensor":
    """Repeat the kernels over n channels, scaled by 3/n, which is timm's rule too."""
    repeated = weight[:, [channel % PRETRAINED_CHANNELS for channel in range(channels)]]
    return repeated * (PRETRAINED_CHANNELS / channels)


def _draw(weight: "Tensor", channels: int, pretraining: Pretraining, seed: int) -> "Tensor":
    """Draw a new kernel (He et al. 2015, fan-out)."""
    import torch

    new = weight.new_empty(weight.shape[0], channels, *weight.shape[2:])
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.kaiming_normal_(new, mode="fan_out", nonlinearity="relu", generator=generator)


ADAPTATIONS: dict[str, Adaptation] = {
    "expand": Adaptation(grey=True, keeps_native=True),
    "fold": Adaptation(kernel=_fold, statistics=_average, grey=True, appends_one=True),
    "sum": Adaptation(kernel=_sum, statistics=_average, grey=True, exact=False),
    "reinit": Adaptation(kernel=_draw, statistics=_average, grey=True, many=True, is_new=True),
    "tile": Adaptation(kernel=_tile, statistics=_cycle, many=True, needs_channels=True, keeps_native=True),
}
