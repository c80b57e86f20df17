"""The one command-line parser: argparse, with our own error messages, for every command."""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from finetune.config import command_line
from finetune.config.keys import find_key
from finetune.config.overrides import SHORT
from finetune.errors import UserError, closest, did_you_mean
from finetune.safe_files import inside

# what Hydra's --cfg and --info print; the first is taken where the word is left out
_PRINTED: dict[str, tuple[str, ...]] = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all")}
_PRINTED |= {"--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")}
_PRINTED["-i"] = _PRINTED["--info"]


# help of --trust
TRUST = "import and build the classes of your own that RUN names; this runs their code"


class Arguments(argparse.ArgumentParser):
    """The parser of one command.

    Args:
        command: Name of the command.
        about: Help text of a few lines.
        ending: Help text after the options.
    """

    def __init__(self, command: str, about: str, ending: str = "RUN is a run folder or a bundle folder.") -> None:
        super().__init__(
            prog=f"finetune {command}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog=ending,
            add_help=False,
        )
        self.command = command
        self._typed: list[str] = []
        # required option -> values to propose where it is missing, the first of them if no word tells which
        self.examples: dict[str, tuple[str, ...]] = {}
        # options that the command also takes as key=value
        self.also_as_settings: frozenset[str] = frozenset()
        self.add_argument("-h", "--help", action="store_true", help="show this text")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the command; options and other words may be mixed.

        Raises:
            UserError: A word or an option is wrong.
            SystemExit: The help was asked for, and has been printed.
        """
        words, self._typed = _completed(argv), list(argv)
        if "-h" in words or "--help" in words:
            print(self.help_for(words))
            raise SystemExit(0)
        for word in words[: words.index("--")] if "--" in words else words:
            option = word.partition("=")[0]
            if re.fullmatch(r"--[A-Za-z].*|-[A-Za-z]", option) and option not in self._option_string_actions:
                self._refuse(word, list(argv))
        self._refuse_options_as_settings(list(argv))
        with self._nothing_required():
            given, unknown = self.parse_known_intermixed_args(words)
        for action in self._actions:
            if action.required and action.option_strings and getattr(given, action.dest) is None:
                self._refuse_missing(action, list(argv))
        if unknown:
            self._refuse(unknown[0], list(argv))
        return given

    def help_for(self, words: Sequence[str]) -> str:
        """Return the help; ``words`` are those of the command line that requested it."""
        return self.format_help().rstrip()

    def flags(self) -> list[str]:
        """Return the long forms of the options that the command takes."""
        shown = [action for action in self._actions if action.option_strings and action.help != argparse.SUPPRESS]
        return [*(action.option_strings[-1] for action in shown), "--traceback"]

    def _refuse(self, word: str, argv: Sequence[str]) -> NoReturn:
        if not word.startswith("-"):
            raise UserError(f"{word}: not understood. {self._form()}\n{self.format_usage().strip()}")
        if line := self.line_for(word, argv):
            raise UserError(line)
        known = sorted(self.flags())
        # --help is never what an unknown option meant
        meant = [option for option in known if option != "--help"]
        near = closest(word.partition("=")[0].replace("_", "-"), meant)
        if near is None:
            raise UserError(f"{word}: no such option. Options: {', '.join(known)}.")
        words = [near + one[len(word.partition("=")[0]) :] if one == word else one for one in argv]
        raise UserError(f"{word}: no such option. Did you mean {near!r}? Use: {command_line(self.command, words)}")

    @contextmanager
    def _nothing_required(self) -> Iterator[None]:
        """Let the parser pass over missing options while the block runs."""
        required = [action for action in self._actions if action.required and action.option_strings]
        for action in required:
            action.required = False
        try:
            yield
        finally:
            for action in required:
                action.required = True

    def _refuse_options_as_settings(self, argv: list[str]) -> None:
        """Answer options that are written as settings, ``split=val``, with the line that gives them."""
        takes_settings = any("key=value" in str(action.metavar) for action in self._actions)
        words, wrong, problems = [], [], []
        for word, before in zip(argv, ["", *argv], strict=False):
            name, joined, value = word.partition("=")
            action = self._option_string_actions.get(f"--{name.replace('_', '-')}")
            if (
                not joined
                or action is None
                or action.help == argparse.SUPPRESS
                or name in self.also_as_settings
                or before.startswith("-")
                or Path(word).exists()
                or (takes_settings and (name in SHORT or find_key(name)[0] is None))
            ):
                words.append(word)
                continue
            option = action.option_strings[-1]
            wrong.append(word)
            if action.choices is not None and value not in action.choices:
                near = closest(value, list(action.choices))
                if near is None:
                    problems.append(f"{option} {value}: not a choice. Choices: {', '.join(action.choices)}.")
                value = near or value
            words += [option] if action.nargs == 0 else [option, value]
        if not wrong:
            return
        ending = problems or [f"Use: {command_line(self.command, words)}"]
        raise UserError("\n".join([*(f"{word}: is an option, not a setting." for word in wrong), *ending]))

    def _refuse_missing(self, action: argparse.Action, argv: list[str]) -> NoReturn:
        """Answer a missing option with the line that gives it: the value is a word of the line that can be one, or an example."""
        option, examples = action.option_strings[-1], self.examples[action.option_strings[-1]]
        suffixes = {Path(example).suffix for example in examples}
        meant = [
            word
            for word in argv
            if not word.startswith("-")
            and not Path(word).exists()
            and (word in examples if action.choices is not None else Path(word).suffix in suffixes)
        ]
        value = meant[-1] if meant else examples[0]
        words = list(argv)
        if meant:
            del words[len(words) - 1 - words[::-1].index(value)]
        choices = f" One of {', '.join(map(str, action.choices))}." if action.choices is not None else ""
        raise UserError(
            f"{option}: must be given.{choices}\nUse: {command_line(self.command, [*words, option, value])}"
        )

    def line_for(self, word: str, argv: Sequence[str]) -> str | None:
        """Return a message with the correct line for an unknown option, or None if there is none."""
        return None

    def _form(self) -> str:
        takes = [str(action.metavar) for action in self._actions if not action.option_strings]
        return f"finetune {self.command} takes {' and '.join(takes) or 'options only'}."

    def wrong(self, message: str) -> UserError:
        """Return an error about the whole line, with the usage of the command."""
        return UserError(
            f"{self.prog}: {message if message.endswith(('.', '?')) else message + '.'}\n{self.format_usage().strip()}"
        )

    def _too_few(self) -> UserError:
        """Return the answer to a line without all words that the command needs: the line with their names."""
        needed = [one for one in self._actions if not one.option_strings and one.nargs in (None, "+")]
        given = [word for word in self._typed if not word.startswith("-")]
        missing = [str(one.metavar) for one in needed[len(given) :]] or [str(needed[-1].metavar)]
        words = [*self._typed, *missing]
        for option, examples in self.examples.items():
            if option not in self._typed:
                words += [option, examples[0]]
        return UserError(
            f"{self.prog}: {' and '.join(missing)} must be given.\nUse: {command_line(self.command, words)}"
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing it and exiting."""
        if message.startswith("the following arguments are required"):
            raise self._too_few()
        wrong = re.fullmatch(r"argument ([^:]+): (.*)", message, flags=re.DOTALL)
        if wrong is None:
            raise self.wrong(message)
        option, why = wrong[1].rpartition("/")[2], wrong[2].rstrip(".")
        if why.startswith("expected"):
            raise UserError(f"{option}: needs a value.\nUse: {self._with_value(option)}")
        raise UserError(f"{option} {why}" if why.endswith("?") else f"{option} {why}.")

    def _with_value(self, option: str) -> str:
        """Return the typed line with a value for an option that has none: an example, a choice, or the name of the value."""
        action = self._option_string_actions[option]
        value = [
            *self.examples.get(option, ()),
            *map(str, action.choices or ()),
            str(action.metavar or action.dest.upper()),
        ]
        words = [
            word.removesuffix("=") if word.partition("=")[0] in action.option_strings else word for word in self._typed
        ]
        bare = [
            at
            for at, (word, following) in enumerate(zip(words, [*words[1:], "-"], strict=True))
            if word in action.option_strings and following.startswith("-")
        ]
        at = bare[-1] + 1 if bare else len(words)
        return command_line(self.command, [*words[:at], value[0], *words[at:]])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action,
                f"{value}: not a choice. Choices: {', '.join(choices)}.{did_you_mean(str(value).lower(), choices)}",
            )


def _completed(argv: Sequence[str]) -> list[str]:
    """Return the words with the default value of ``--cfg`` and ``--info`` if none follows.

    >>> _completed(["--cfg", "data=digits"])
    ['--cfg=job', 'data=digits']
    """
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        bare = word in _PRINTED and following not in _PRINTED[word]
        words.append(
            f"{'--cfg' if word == '-c' else '--info' if word == '-i' else word}={_PRINTED[word][0]}" if bare else word
        )
    return words


def numeric(kind: type, *, least: float | None = None, why: str = "") -> Callable[[str], Any]:
    """Return a converter of an option's value to a number.

    Args:
        kind: ``int`` or ``float``.
        least: Smallest value; None for any.
        why: Reason for the smallest value, as the end of a sentence.
    """

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: must be a number") from None
        if least is not None and not value >= least:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least:g}{why}")
        return value

    return convert


def home_path(text: str) -> Path:
    """Return the value of an option that names a file or a folder; ``~`` is the home folder.

    >>> home_path("a/b").name
    'b'
    """
    return Path(text).expanduser()


def output_folder(given: Path | None, default: Path) -> Path:
    """Return the folder into which a command writes several files.

    Args:
        given: Folder that the user typed; None if there is none.
        default: Folder beside a file that others may have made.

    Raises:
        UserError: The path is a file, or the default one a link to another place.
    """
    folder = inside(default.parent, default.name, of="folder") if given is None else given
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: must be a folder. It is a file.")
    return folder
