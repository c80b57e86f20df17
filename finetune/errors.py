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


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return a hint at the closest valid name, with a leading space, or an empty string if none is close.

    >>> did_you_mean("layer5", ["stem", "layer4"])
    " Did you mean 'layer4'?"
    >>> did_you_mean("xyz", ["stem", "layer4"])
    ''
    """
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def shortened(items: Sequence[object], show: int = 3) -> str:
    """Join the first few items of a list, followed by the number of the others.

    >>> shortened(["a", "b"])
    'a, b'
    >>> shortened(list("abcde"))
    'a, b, c and 2 more'
    """
    text = ", ".join(str(item) for item in items[:show])
    return text if len(items) <= show else f"{text} and {len(items) - show} more"
