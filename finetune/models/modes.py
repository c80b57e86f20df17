"""Switches modules to evaluation mode and restores their training modes exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode inside the block; afterwards restore the mode of each part.

    Modes are restored one by one, because only some parts of a network may be in training mode.

    >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(net):
    ...     print([part.training for part in net])
    [False, False]
    >>> [part.training for part in net]
    [True, False]
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
