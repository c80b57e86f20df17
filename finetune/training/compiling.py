"""Decide whether ``torch.compile`` compiles the trainable part of the network: the setting ``compile``.

``auto`` does not compile. On two cores, ResNet-18, 224 px, bf16, batches of 32, a compiled training step took 602 ms where the
plain one took 530 (0.89 times as fast, 0.81 to 0.97 in 15 turns), and the first one 28 s; with a GPU it has not been measured.
``tests/benchmarks/compile_gain.py`` measures it on another machine.
"""

import os
import shutil
from typing import Any

from finetune.errors import UserError

# torch.compile needs one of these for CPU code, and Triton for GPU code
_COMPILERS = ("g++", "clang++", "c++")


def compiles(setting: Any) -> bool:
    """Return whether a run compiles its trainable part.

    Args:
        setting: ``auto``, ``off`` or ``on``; YAML reads the bare words off and on as false and true.

    Raises:
        UserError: Compilation is on, and this machine has no C++ compiler.
    """
    if setting not in ("on", True):
        return False
    if not os.environ.get("CXX") and not any(map(shutil.which, _COMPILERS)):
        raise UserError(
            f"compile=on: torch.compile needs a C++ compiler, and none of {', '.join(_COMPILERS)} is installed. Install one, "
            "or leave compile=off."
        )
    return True
