"""Memory that solving a head takes, and that the device which solves it has."""

from dataclasses import dataclass

import torch

from finetune.machine_memory import memory_bytes

# logits of one block of images: all memory but that of the features is bounded by it
BLOCK_LOGITS = 2**24
# the logits, their targets, their logarithms, and the gradients of these, in double precision
_LOGIT_COPIES = 8
# vectors of the length of the weights that L-BFGS-B works on, with ten corrections: scipy's ``_lbfgsb_py.py``
_WORK_VECTORS = 25
_DOUBLE = 8


@dataclass(frozen=True, kw_only=True)
class SolverMemory:
    """The memory of the device that solves heads, for one process.

    Args:
        bytes: How many bytes it has.
        where: Whose memory it is, in words: ``this machine``, or a GPU's name.
    """

    bytes: float
    where: str


def solver_memory(accelerator: str, *, processes: int = 1) -> SolverMemory:
    """Return the memory that a process may solve a head in: a CUDA device's own, else its share of the machine's.

    Args:
        accelerator: ``trainer.accelerator``.
        processes: Processes of the run on this machine; each of them solves the head.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        return SolverMemory(bytes=device.total_memory, where=device.name)
    # Apple's GPU has no double precision, so the machine solves
    each = f", for each of {processes} processes" if processes > 1 else ""
    return SolverMemory(bytes=memory_bytes() / processes, where=f"this machine{each}")


def solver_bytes(rows: int, width: int, num_classes: int) -> int:
    """Return the bytes that solving a head takes: the features once, the logits of a block, and the vectors of L-BFGS.

    Args:
        rows: Images, each as often as it has views.
        width: Features of an image.
        num_classes: Number of classes.

    >>> round(solver_bytes(1_000_000, 2048, 10) / 1e9, 1)
    17.0
    """
    features = rows * width
    logits = _LOGIT_COPIES * min(rows * num_classes, max(BLOCK_LOGITS, num_classes))
    return _DOUBLE * (features + logits + _WORK_VECTORS * num_classes * (width + 1))
