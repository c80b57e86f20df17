"""``compile``: whether what trains is compiled by ``torch.compile``.

``auto`` does not compile. See ``tests/benchmarks/compile_gain.py`` for what it would cost and gain on a machine.
"""

import os
import shutil
from typing import Any

from finetune.errors import UserError

WORDS = ("auto", "off", "on")
# that torch.compile calls for code of a processor, and Triton for that of a GPU
_COMPILERS = ("g++", "clang++", "c++")


def compile_word(wanted: Any) -> str:
    """The setting as a word: YAML reads the bare words on and off as true and false."""
    return {True: "on", False: "off"}.get(wanted, str(wanted)) if isinstance(wanted, bool) else str(wanted)


def compiles(wanted: Any) -> bool:
    """Whether a run compiles.

    Raises:
        UserError: It is to, and this machine has no compiler.
    """
    if compile_word(wanted) != "on":
        return False
    if not os.environ.get("CXX") and not any(map(shutil.which, _COMPILERS)):
        raise UserError(
            f"compile=on: torch.compile needs a C++ compiler, and none of {', '.join(_COMPILERS)} is installed. Install one, "
            "or leave compile=off."
        )
    return True
