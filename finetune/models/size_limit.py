"""A bound on the size of a network that is built from an untrusted description."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from finetune.errors import UserError

# parameters that libraries build and throw away again, such as a classifier for ImageNet's classes
_SPARE = 20_000_000


class TooManyParametersError(UserError):
    """Raised when a description asks for a larger network than the weights beside it hold."""


@contextmanager
def parameters_at_most(numbers: int, *, name: str) -> Iterator[None]:
    """Stop building a network at the first parameter over the limit, before its memory is written.

    A width of ten million takes only ten bytes in a description. The header of the weights file tells how many numbers
    it holds, and a larger network cannot belong to that file.

    Args:
        numbers: Number of parameters in the file.
        name: Name of the description, for the message.

    Raises:
        TooManyParametersError: The network has more parameters than that.
    """
    total = 0

    def count(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        total += 0 if parameter is None else parameter.numel()
        if total > 2 * numbers + _SPARE:
            raise TooManyParametersError(
                f"{name}: describes a network of more than {total:,} numbers. The weights beside it hold {numbers:,}. "
                "They do not belong together; get the whole folder again."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
