"""Drawn pictures and their classes, without the package: tests.golden draws them for revisions that name its parts otherwise."""

import torch
from torch import Tensor, nn

CLASSES = ("cat", "dog", "owl", "émeu", "=1+1")


def picture(kind: int, *, channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a random smooth picture whose fineness, tint and brightness depend on its kind, uint8 (channels, *size)."""
    grid = 2 + kind
    coarse = torch.rand(1, channels, grid, grid, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0]
    tint = torch.tensor([0.5 + 0.5 * ((kind + c) % 3) / 2 for c in range(channels)]).view(-1, 1, 1)
    return (smooth * tint * 255).clamp(0, 255).to(torch.uint8)
