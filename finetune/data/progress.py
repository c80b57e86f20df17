"""A progress line for long work; it prints nothing for short work or where stderr is not a terminal."""

import sys
import time

from finetune.terminal import overwrite


class Progress:
    """A counter of finished items, printed twice a second from two seconds on, if standard error is a terminal.

    Args:
        what: Name of the work, such as ``checking images``.
        total: Number of items; None if it is not known.
    """

    def __init__(self, what: str, *, total: int | None = None) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._next = time.monotonic() + 2
        self._shown = False

    def advance(self, count: int) -> None:
        """Count some more items as done, and print the line when it is due."""
        self.done += count
        if time.monotonic() < self._next or not sys.stderr.isatty():
            return
        of = f" of {self.total:,}" if self.total else ""
        overwrite(f"{self.what}: {self.done:,}{of}")
        self._shown, self._next = True, time.monotonic() + 0.5

    def close(self) -> None:
        """End the line if one was printed."""
        if self._shown:
            overwrite(f"{self.what}: {self.done:,}, done", end="\n")
