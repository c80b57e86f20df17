"""Names from data, made harmless where they are shown: class and file names are somebody else's text."""

import html

# a spreadsheet takes a cell that begins so for a formula (OWASP, CSV injection)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = "\\`*_{}[]<>()#+-!|&~$"


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
