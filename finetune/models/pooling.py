"""Pooling: from the last maps or tokens of a network to one feature vector.

``backbone.pool`` chooses it (:data:`finetune.models.pools.POOLS`). ``cls_mean`` is how DINOv2 is evaluated with a linear head
(arXiv:2304.07193), ``gem`` the generalised mean of image retrieval (Radenović et al. 2018, arXiv:1711.02512).
"""

# B = batch, N = tokens, D = features, h/w = height/width of a map

import torch
from torch import Tensor, nn


class AveragePool(nn.Module):
    """The mean over the pixels of a map, ``(B, D, h, w)`` to ``(B, D)``."""

    def forward(self, maps_BDhw: Tensor) -> Tensor:
        return maps_BDhw.mean((2, 3))


class ClassTokenAndMean(nn.Module):
    """The class token beside the mean of the patches, from tokens ``(B, N, D)`` to ``(B, 2D)``.

    Args:
        prefix: Tokens before the patches: the class token, which is the first, and registers, which are left out.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return torch.cat([tokens_BND[:, 0], tokens_BND[:, self.prefix :].mean(1)], dim=1)


class GeneralisedMean(nn.Module):
    """The third root of the mean of third powers over the pixels of a map; negative values count as zero.

    Args:
        pixels: The two dimensions of the pixels.
        keep: Whether they stay, with length 1.
    """

    POWER = 3.0
    # the root's slope at zero is infinite
    LEAST = 1e-6

    def __init__(self, pixels: tuple[int, int], *, keep: bool) -> None:
        super().__init__()
        self.pixels = pixels
        self.keep = keep

    def forward(self, maps: Tensor) -> Tensor:
        powers = maps.clamp(min=self.LEAST).pow(self.POWER)
        return powers.mean(self.pixels, keepdim=self.keep).pow(1 / self.POWER)
