"""Modules as a user would write them: a residual network, a chain, a network for grey images, and a head."""

import torch
from torch import Tensor, nn

STAGES = {"stem": ["conv1", "bn1"], "layer1": ["layer1"], "layer2": ["layer2"]}


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, maps: Tensor) -> Tensor:
        return self.bn(self.conv(maps)).relu()


class Net(nn.Module):
    """Images (B, C, H, W) to maps (B, 16, h, w); the activation is no child, so that no chain of children computes it."""

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = _Block(8, width)
        self.layer2 = _Block(width, width)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.layer2(self.layer1(self.bn1(self.conv1(images)).relu()))
        return maps


def chain() -> nn.Sequential:
    """The same as an ``nn.Sequential``, with children that hold no parameters in between."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), _Block(8, 16), _Block(16, 16), nn.Identity()
    )


class Head(nn.Module):
    """Two layers with GELU, which no head of finetune has."""

    def __init__(self, num_features: int, num_classes: int, width: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_features, width), nn.GELU(), nn.Linear(width, num_classes))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layers(features)
        return logits


class Squared(nn.Module):
    """The squared distance to the one-hot target, as a mean over the batch."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        wanted = torch.nn.functional.one_hot(targets, logits.shape[1]).to(logits.dtype)
        return self.factor * (logits - wanted).square().mean()


class Inverted:
    """Negative pictures, with noise that torch's generator draws."""

    def __init__(self, noise: int = 0) -> None:
        self.noise = noise

    def __call__(self, image: Tensor) -> Tensor:
        inverted = 255 - image
        return inverted ^ torch.randint(0, self.noise + 1, image.shape, dtype=torch.uint8) if self.noise else inverted
