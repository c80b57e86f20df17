"""The package's log on the terminal, from rank 0 only: warnings go to stderr, all else to stdout in lines of 80 columns.

A program that uses the package can silence it, ``logging.getLogger("finetune").setLevel(logging.WARNING)``, or send it
elsewhere, ``logging.getLogger("finetune").addHandler(handler)``: :func:`show_log` then leaves level and handlers alone.
"""

import logging
import sys

from finetune.distributed import is_rank_zero
from finetune.terminal import escape
from finetune.wrapping import wrapped

PACKAGE = logging.getLogger("finetune")


class TerminalHandler(logging.Handler):
    """Prints records at once, even through a pipe, to the standard streams of that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; a process forked from rank 0 does not count as rank 0."""
        if not is_rank_zero():
            return
        # escaped here too, because a progress bar replaces the guarded output by a stream of its own
        text = escape(record.getMessage())
        if record.levelno >= logging.WARNING:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        else:
            print(wrapped(text), flush=True)


def show_log() -> None:
    """Show the package's log on the terminal, unless the program that uses the package has decided otherwise."""
    if not PACKAGE.handlers:
        PACKAGE.addHandler(TerminalHandler())
    if PACKAGE.level == logging.NOTSET:
        PACKAGE.setLevel(logging.INFO)


def show(line: str) -> None:
    """Log a line for the user; :func:`show_log` shows it."""
    PACKAGE.info("%s", line)
