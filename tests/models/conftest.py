"""What several tests of models need: networks whose statistics are not the trivial ones, and images."""

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def settled() -> Callable[[nn.Module], nn.Module]:
    """Give a network random running statistics and affine parameters, in eval mode.

    Fresh BatchNorm is nearly the identity and fresh gates may be 0: with them, a network that lost a part would still
    equal the one it is compared with.
    """

    def settle(net: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                if name.endswith("running_mean"):
                    tensor.normal_(0, 0.2, generator=generator)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0, generator=generator)
                elif tensor.ndim == 1 and tensor.is_floating_point():
                    tensor.uniform_(0.2, 0.6, generator=generator)
        return net.eval()

    return settle


@pytest.fixture
def pixels() -> Callable[..., torch.Tensor]:
    """Random ``uint8`` images."""

    def make(channels: int = 3, size: int = 32, batch: int = 2) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, generator=generator)

    return make
