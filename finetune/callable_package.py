"""Packages whose name is also a public function: ``finetune.export`` holds the formats, ``finetune.export(run, ...)`` writes one.

Python sets a package as an attribute of the package above it once it is imported, in place of a function of that name.
"""

import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that calls the public function of its own name; a package takes this class in its ``__init__``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = sys.modules["finetune"].__getattr__(self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # so that it can be sent to another process, as a function can
        return _imported, (self.__name__,)


def _imported(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]
