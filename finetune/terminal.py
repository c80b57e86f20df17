"""Names from data, made harmless where they are shown: class and file names are somebody else's text.

All that the program says passes :func:`guarded_output`: whatever is printed, logged, warned of or raised, its control
characters are spelled out before they reach the terminal.
"""

import contextlib
import html
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from finetune.errors import RunError

# a spreadsheet takes a cell that begins so for a formula (OWASP, CSV injection)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = "\\`*_{}[]<>()#+-!|&~$"


# control characters but for the end of a line and the tabulator, marks that turn the direction of writing, lone surrogates
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    r"""A text of several lines for a terminal: control characters are spelled out, line ends stay.

    >>> escape("a" + chr(27) + "[31mb" + chr(10))
    'a\\x1b[31mb\n'
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class GuardedStream:
    """A stream that spells out control characters, and what its encoding does not have; else as the one behind it.

    Args:
        raw: The stream behind it.
        name: For messages.
    """

    def __init__(self, raw: TextIO, name: str) -> None:
        self.raw, self._name = raw, name

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            BrokenPipeError: Whoever read it has gone.
            RunError: The system did not take it, for instance because the disk is full.
        """
        shown = escape(text)
        with self._explained():
            try:
                self.raw.write(shown)
            except UnicodeEncodeError:
                encoding = self.raw.encoding
                self.raw.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand over what was written."""
        with self._explained():
            self.raw.flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise RunError(f"{self._name}: cannot be written. {error.strerror or error}.") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Guard standard output and standard error inside the block."""
    before = sys.stdout, sys.stderr
    for name, spoken in (("stdout", "standard output"), ("stderr", "standard error")):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream, spoken))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unguarded(stream: TextIO) -> TextIO:
    """The stream behind a guarded one, for what moves the cursor on purpose; texts for it go through :func:`printable`."""
    return stream.raw if isinstance(stream, GuardedStream) else stream


def overwrite(text: str, *, end: str = "") -> None:
    """Write over the last line of standard error, as a count of what is done does."""
    stream = unguarded(sys.stderr)
    stream.write(f"\r{printable(text)}{end}")
    stream.flush()


def open_missing_streams() -> None:
    """Put ``os.devnull`` where a standard stream is closed.

    Without, the next file that is opened, a checkpoint perhaps, gets its number and all that libraries print.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def csv_cell(text: str) -> str:
    """A text for a CSV cell: one that a spreadsheet would compute gets an apostrophe before it.

    >>> csv_cell("=1+1"), csv_cell("cat")
    ("'=1+1", 'cat')
    """
    text = encodable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def printable(text: str) -> str:
    r"""A text for a terminal or a log line: control characters, which could move the cursor or colour it, are spelled out.

    >>> printable("a" + chr(27) + "[31mb")
    'a\\x1b[31mb'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in encodable(text))
    return shown


def encodable(text: str) -> str:
    r"""A text that UTF-8 holds: bytes of file names that are no text are spelled out.

    >>> encodable("a" + chr(0xDCFF))
    'a\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def markdown(text: str) -> str:
    r"""A text inside a Markdown paragraph, list or table, on one line and without HTML.

    >>> markdown("<b>|")
    '\\<b\\>\\|'
    """
    one_line = " ".join(printable(part) for part in text.split())
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in one_line)


def html_text(text: str) -> str:
    """A text inside HTML, in an element or a quoted attribute.

    >>> html_text('<img src="x">')
    '&lt;img src=&quot;x&quot;&gt;'
    """
    return html.escape(printable(text), quote=True)
