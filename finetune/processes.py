"""Which of several processes this one is, known before torch or Lightning is imported."""

import os

# as set by torchrun, by Lightning's own launcher, and by SLURM
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Whether this is the one process of a run that talks and writes."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)
