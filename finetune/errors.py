"""Errors that commands report to the user as one message, without a traceback."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """An error that the user can correct; commands print its text without a traceback and exit with status 2.

    The text has the form ``<config.path>=<value>: <rule broken>. <fact found>. <what to do>.``
    """


class ConfigError(UserError):
    """Several problems that were collected and are printed together.

    Args:
        problems: Messages, one per problem, in the order found; at least one.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        assert problems, "a ConfigError needs a problem"
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class RunError(RuntimeError):
    """A failure of a run with a valid configuration; commands print its text and exit with status 1."""


class FileError(RunError):
    """A file or folder that could not be read or written; the text names it and the cause."""


class Interrupted(KeyboardInterrupt):
    """A run stopped by a signal; commands print its text and exit with status 128 plus the number of the signal.

    Args:
        message: Point at which the run stopped, and the way to continue it.
        number: Number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, number)
        self.message, self.number = message, int(number)

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        """Return the exit status that a shell reports for a program ended by the signal: Ctrl-C 130, SIGTERM 143."""
        return 128 + self.number


def closest(name: str, valid: Iterable[str]) -> str | None:
    """Return the closest valid name, or None if none is close.

    >>> closest("layer5", ["stem", "layer4"]), closest("xyz", ["stem", "layer4"])
    ('layer4', None)
    """
    return next(iter(difflib.get_close_matches(name, list(valid), n=1)), None)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return a hint at the closest valid name, with a leading space, or an empty string if none is close.

    >>> did_you_mean("layer5", ["stem", "layer4"])
    " Did you mean 'layer4'?"
    >>> did_you_mean("xyz", ["stem", "layer4"])
    ''
    """
    near = closest(name, valid)
    return f" Did you mean {near!r}?" if near else ""


def type_in_words(value: object) -> str:
    """Return the type of a value with its article, for a message.

    >>> type_in_words(2), type_in_words("x"), type_in_words(None)
    ('an int', 'a str', 'None')
    """
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def first_line(error: BaseException, *, with_type: bool = False) -> str:
    r"""Return the first line of an error's message, or the name of its type if it has none.

    Args:
        error: The error.
        with_type: Whether the name of its type precedes the message.

    >>> first_line(OSError("\nno such host\nat 10.0.0.1")), first_line(KeyError())
    ('no such host', 'KeyError')
    >>> first_line(ValueError("too many"), with_type=True), first_line(KeyError(), with_type=True)
    ('ValueError: too many', 'KeyError')
    """
    name, text = type(error).__name__, str(error).strip()
    if not text:
        return name
    first = text.splitlines()[0]
    return f"{name}: {first}" if with_type else first


def shortened(items: Sequence[object], show: int = 3) -> str:
    """Join the first few items of a list, followed by the number of the others.

    >>> shortened(["a", "b"])
    'a, b'
    >>> shortened(list("abcde"))
    'a, b, c and 2 more'
    """
    text = ", ".join(str(item) for item in items[:show])
    return text if len(items) <= show else f"{text} and {len(items) - show} more"
