"""Messages in the words of the caller: settings and options of the command line become the arguments of the function called.

The checks below a command and below a function are the same, and name what the command line names. :func:`in_python` gives
their messages the names that a caller in Python typed.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from finetune.errors import ConfigError, RunError, UserError

# name on the command line -> arguments that take its place, the first that the function has
_ARGUMENTS = {
    "RUN": ("run", "model", "path", "run_dir", "result"),
    "IMAGES": ("images",),
    "EMBEDDINGS": ("embeddings",),
    "data.root": ("data",),
    "data.path": ("data",),
    "data.batch_size": ("batch_size",),
    "data.augment": ("augment",),
    "data.classes": ("classes",),
    "input.size": ("size",),
    "input.channels": ("channels",),
    "backbone.name": ("backbone",),
    "backbone.weights": ("weights",),
    "head.name": ("head",),
    "loss.name": ("loss",),
    "logger": ("loggers",),
    "schedule.name": ("schedule",),
}
# a command in a message -> the call
_CALLS = (
    (re.compile(r"finetune resume ('[^']*'|\S+)( --trust)?"), r"finetune.resume(\1\2)"),
    (re.compile(r"finetune export (\S+) --format (\w+)"), r"finetune.export(\1, '\2')"),
    (re.compile(r"finetune embed (\S+) IMAGES( --output \S+)?"), r"finetune.embed(\1, images)"),
    (re.compile(r"finetune embed (\S+) data=DIR( --output \S+)?"), r"finetune.embed(\1, data=data)"),
)
# a setting at the start of a message
_SETTING = re.compile(r"^([A-Za-z_][\w.]*)(?=[=:])", re.MULTILINE)
# an option with a value, anywhere
_OPTION = re.compile(r"--([a-z][a-z-]*)(?:[ =]([\w./~-]*[\w/~-]))?")
# settings to add, a line of them with what they do
_LINE = re.compile(r"^( +)([\w.]+=\S+(?: [\w.]+=\S+)*)(?= +#|$)", re.MULTILINE)

_from_python: ContextVar[bool] = ContextVar("_from_python", default=False)


def called_from_python() -> bool:
    """Return whether a public function is running, so that what is printed names calls and not commands."""
    return _from_python.get()


@contextmanager
def python_names(arguments: Sequence[str], *, typed: Sequence[str] = ()) -> Iterator[None]:
    """Give errors that leave the block the names of a function's arguments.

    Args:
        arguments: Names of the function's arguments.
        typed: Overrides that the caller gave; a setting that they name keeps its name.

    Raises:
        UserError: As inside, with the names replaced.
        RunError: The same.
    """
    token = _from_python.set(True)
    try:
        yield
    except (UserError, RunError) as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (in_python(error.args[0], arguments, typed=typed), *error.args[1:])
        if isinstance(error, ConfigError):
            error.problems = tuple(in_python(problem, arguments, typed=typed) for problem in error.problems)
        raise
    finally:
        _from_python.reset(token)


def in_python(message: str, arguments: Sequence[str], *, typed: Sequence[str] = ()) -> str:
    """Return a message with the names of a function's arguments.

    Args:
        message: Message with names of the command line.
        arguments: Names of the function's arguments.
        typed: Overrides that the caller gave; a setting that they name keeps its name.

    >>> in_python("RUN='nope': no such folder.", ["path", "trust"])
    "path='nope': no such folder."
    >>> in_python("data.root='pets': no images found.", ["data"])
    "data='pets': no images found."
    >>> in_python("--output x.txt: must end in .onnx. Use --format onnx.", ["format", "output"])
    "output='x.txt': must end in .onnx. Use format='onnx'."
    >>> in_python("Continue with: finetune resume runs/pets", [])
    "Continue with: finetune.resume('runs/pets')"
    """
    kept = {word.lstrip("+~").partition("=")[0] for word in typed}

    def argument(setting: str) -> str | None:
        return next((name for name in _ARGUMENTS.get(setting, ()) if name in arguments and setting not in kept), None)

    def option(match: re.Match[str]) -> str:
        name, value = match[1].replace("-", "_"), match[2]
        if name not in arguments:
            return match[0]
        return name if value is None else f"{name}={_value(value)}"

    def line(match: re.Match[str]) -> str:
        words = [word.partition("=")[::2] for word in match[2].split()]
        keys = [key for key, _ in words]
        # backbone=timm says where the name below it comes from
        pairs = [(key, value) for key, value in words if not (key == "backbone" and "backbone.name" in keys)]
        named = [(key if key in arguments else argument(key), value) for key, value in pairs]
        if any(key is None for key, _ in named):
            return match[0]
        return match[1] + ", ".join(f"{key}={_value(value)}" for key, value in named)

    message = message.replace("--trust (in Python trust=True)", "trust=True")
    for command, call in _CALLS:
        message = command.sub(lambda match, call=call: _quoted(match, call), message)  # type: ignore[misc]  # bound by default
    message = _LINE.sub(line, message)
    message = _SETTING.sub(lambda match: argument(match[1]) or match[1], message)
    return _OPTION.sub(option, message)


def _quoted(match: re.Match[str], call: str) -> str:
    run = match[1].strip("'\"").rstrip(".,") if match[1] != "RUN" else "run"
    shown = "run" if run == "run" else repr(run)
    trust = ", trust=True" if match.lastindex and match.lastindex > 1 and match[2] == " --trust" else ""
    return call.replace(r"\1\2", shown + trust).replace(r"\1", shown).replace(r"\2", str(match[2]))


def _value(text: str) -> str:
    """Return a value as Python would have it: numbers as they are, capitals that stand for a value too, texts in quotes."""
    if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?|[A-Z]+", text):
        return text
    return repr(text.strip("'\""))
