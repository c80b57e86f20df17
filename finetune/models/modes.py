"""Training modes, put back exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode inside the block; afterwards each part is in the mode that it had.

    One by one: a network may be in training mode in some of its parts alone.

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
