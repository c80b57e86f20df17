"""Double precision on any device: Apple's GPU has none, so what needs it is computed on the CPU there."""

import torch


def device_of_doubles(device: torch.device) -> torch.device:
    """Return the device on which tensors of another one are computed in double precision.

    >>> device_of_doubles(torch.device("mps")), device_of_doubles(torch.device("cuda:1"))
    (device(type='cpu'), device(type='cuda', index=1))
    """
    return torch.device("cpu") if device.type == "mps" else device


def doubles(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, on a device that has it."""
    # in this order: on Apple's GPU a conversion of the type fails before the move
    return tensor.to(device_of_doubles(tensor.device)).double()
