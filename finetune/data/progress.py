"""A line on the terminal for work that takes long; silent for the rest, and where nobody looks."""

import sys
import time

from finetune.terminal import overwrite


class Progress:
    """Counts what is done; after two seconds it says so twice a second, on standard error if that is a terminal.

    Args:
        what: What is being done, such as ``checking images``.
        total: How many there are, if known.
    """

    def __init__(self, what: str, *, total: int | None = None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._next = time.monotonic() + 2
        self._shown = False

    def advance(self, count: int) -> None:
        """Note that so many more are done."""
        self.done += count
        if time.monotonic() < self._next or not sys.stderr.isatty():
            return
        of = f" of {self.total:,}" if self.total else ""
        overwrite(f"{self.what}: {self.done:,}{of}")
        self._shown, self._next = True, time.monotonic() + 0.5

    def close(self) -> None:
        """End the line, if there is one."""
        if self._shown:
            overwrite(f"{self.what}: {self.done:,}, done", end="\n")
