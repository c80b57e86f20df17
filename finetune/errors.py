"""Mistakes of the user's, told in one message each."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something the user can put right; commands print its text without a traceback and exit with status 2.

    The text follows one form: ``<config.path>=<value>: <rule broken>. <fact found>. <what to do>.``
    """


class ConfigError(UserError):
    """Several problems found together, printed together.

    Args:
        problems: One message for each problem, in the order found; at least one.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        assert problems, "a ConfigError needs a problem"
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class RunError(RuntimeError):
    """A run that cannot go on though its configuration was right; commands print its text and exit with status 1."""


class FileError(RunError):
    """A file or folder that the system would not let be written or read; the text names it and the cause."""


class Interrupted(KeyboardInterrupt):
    """A run that a signal stopped; commands print its text and exit with status 128 plus the number of the signal.

    Args:
        message: Where the run stopped, and how to go on.
        number: Number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, number)
        self.message, self.number = message, int(number)

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        """Exit status, as a shell reports a program that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A hint at the nearest valid name, with a leading space, or nothing where none is near.

    >>> did_you_mean("layer5", ["stem", "layer4"])
    " Did you mean 'layer4'?"
    >>> did_you_mean("xyz", ["stem", "layer4"])
    ''
    """
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def shortened(items: Sequence[object], show: int = 3) -> str:
    """The first few of a long list, then how many more there are.

    >>> shortened(["a", "b"])
    'a, b'
    >>> shortened(list("abcde"))
    'a, b, c and 2 more'
    """
    text = ", ".join(str(item) for item in items[:show])
    return text if len(items) <= show else f"{text} and {len(items) - show} more"
