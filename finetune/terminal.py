"""Escapes names from data where they are shown, because class and file names are text from other people.

All output of the program passes :func:`guarded_output`: control characters in anything printed, logged, warned or raised are
escaped before they reach the terminal.
"""

import contextlib
import html
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from finetune.errors import RunError

# a spreadsheet treats a cell that starts with one of these as a formula (OWASP, CSV injection)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = "\\`*_{}[]<>()#+-!|&~$"


# control characters except line end and tab, marks that change the writing direction, and lone surrogates
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    r"""Escape the control characters in a string of several lines for a terminal; line ends stay.

    >>> escape("a" + chr(27) + "[31mb" + chr(10))
    'a\\x1b[31mb\n'
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class GuardedStream:
    """A stream that escapes control characters and characters missing from its encoding; otherwise like the stream behind it.

    Args:
        raw: Stream behind this one.
        name: Name of the stream in messages.
    """

    def __init__(self, raw: TextIO, name: str) -> None:
        self.raw, self._name = raw, name

    def write(self, text: str) -> int:
        """Write a string.

        Raises:
            BrokenPipeError: The reader of the stream has exited.
            RunError: The system refused the text, for instance because the disk is full.
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
        for line in lines:
            self.write(line)

    def flush(self) -> None:
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
    """Return the stream behind a guarded one, for output that moves the cursor; its texts must go through :func:`printable`."""
    return stream.raw if isinstance(stream, GuardedStream) else stream


def overwrite(text: str, *, end: str = "") -> None:
    """Overwrite the last line of standard error, as a progress count does."""
    stream = unguarded(sys.stderr)
    stream.write(f"\r{printable(text)}{end}")
    stream.flush()


def open_missing_streams() -> None:
    """Open ``os.devnull`` for each standard stream that is closed.

    Otherwise the next file that is opened, perhaps a checkpoint, would get the stream's number and everything libraries print.
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
    """Prefix a CSV cell with an apostrophe if a spreadsheet would evaluate it.

    >>> csv_cell("=1+1"), csv_cell("cat")
    ("'=1+1", 'cat')
    """
    text = encodable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def printable(text: str) -> str:
    r"""Escape a string for a terminal or a log line: control characters could move the cursor or colour the text.

    >>> printable("a" + chr(27) + "[31mb")
    'a\\x1b[31mb'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in encodable(text))
    return shown


def encodable(text: str) -> str:
    r"""Escape what UTF-8 cannot encode, such as the undecodable bytes of a file name.

    >>> encodable("a" + chr(0xDCFF))
    'a\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def markdown(text: str) -> str:
    r"""Escape a string for a Markdown paragraph, list or table, on one line and without HTML.

    >>> markdown("<b>|")
    '\\<b\\>\\|'
    """
    one_line = " ".join(printable(part) for part in text.split())
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in one_line)


def html_text(text: str) -> str:
    """Escape a string for HTML, in an element or a quoted attribute.

    >>> html_text('<img src="x">')
    '&lt;img src=&quot;x&quot;&gt;'
    """
    return html.escape(printable(text), quote=True)
