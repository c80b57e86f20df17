"""A bound on how large a network may become while it is built from a description that somebody else wrote."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from finetune.errors import UserError

# what libraries build and throw away again, such as a classifier for ImageNet's classes
_SPARE = 20_000_000


@contextmanager
def parameters_at_most(numbers: int, *, name: str) -> Iterator[None]:
    """Stop the building of a network at its first parameter too many, before memory is written for it.

    A width of ten million takes ten bytes of a description. The weights that belong to it lie in a file whose header says
    how many there are, and a network of more is none of that file.

    Args:
        numbers: Parameters that the file holds.
        name: Of the description, for the message.

    Raises:
        UserError: The network has more.
    """
    total = 0

    def count(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        total += 0 if parameter is None else parameter.numel()
        if total > 2 * numbers + _SPARE:
            raise UserError(
                f"{name}: describes a network of more than {total:,} numbers. The weights beside it hold {numbers:,}. "
                "They do not belong together; get the whole folder again."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
