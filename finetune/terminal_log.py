"""The package's log on the terminal: a line a record, from the first process of a run alone.

A program that uses the package can silence it, ``logging.getLogger("finetune").setLevel(logging.WARNING)``, or send it
elsewhere, ``logging.getLogger("finetune").addHandler(handler)``: :func:`show_log` then leaves level and handlers alone.
"""

import logging

from finetune.distributed import is_rank_zero
from finetune.terminal import escape

PACKAGE = logging.getLogger("finetune")


class TerminalHandler(logging.Handler):
    """Prints records at once, even through a pipe, to whatever standard output is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; a process forked from the first one does not count as the first."""
        if is_rank_zero():
            # escaped here too, because a progress bar replaces the guarded output by a stream of its own
            print(escape(record.getMessage()), flush=True)


def show_log() -> None:
    """Show the package's log on the terminal, unless the program that uses the package has decided otherwise."""
    if not PACKAGE.handlers:
        PACKAGE.addHandler(TerminalHandler())
    if PACKAGE.level == logging.NOTSET:
        PACKAGE.setLevel(logging.INFO)
