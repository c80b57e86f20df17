"""The command table. Imports nothing heavy, so that help, completion and errors appear before torch is loaded."""

import importlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from finetune.corrected_line import corrected_line
from finetune.distributed import is_rank_zero, process_name
from finetune.errors import Interrupted, RunError, UserError, did_you_mean, first_line
from finetune.file_errors import file_error, out_of_memory
from finetune.process_tuning import collect_garbage_rarely, leave
from finetune.terminal import guarded_output, open_missing_streams
from finetune.terminal_log import show_log


@dataclass(frozen=True)
class Command:
    """One row of the command table.

    Args:
        module: Module with ``run(argv: list[str]) -> int`` and possibly its own help.
        summary: Description of one line.
        composes: Whether the command takes a run's configuration as key=value.
    """

    module: str
    summary: str
    composes: bool = False


COMMANDS = {
    "train": Command("train", "train, test, write the bundle and the report (the default)", True),
    "init": Command("init", "look at the data, and write settings to start from, with reasons"),
    "plan": Command("plan", "show the phases as a table, without training", True),
    "audit": Command("audit", "check the images and labels before training", True),
    "lr-find": Command("lr_find", "suggest a learning rate for all stages together", True),
    "ladder": Command("ladder", "compare the strategies on this data, and recommend one", True),
    "settings": Command("settings", "look up a setting: default, allowed values, meaning, example"),
    "runs": Command("runs", "list runs, compare them side by side, free the disk"),
    "sweep-table": Command("sweep_table", "write the table of a sweep again from its jobs' records"),
    "resume": Command("resume", "continue a stopped run"),
    "grow": Command("grow", "teach a trained run new classes"),
    "evaluate": Command("evaluate", "test a trained run on any data"),
    "predict": Command("predict", "classify images (CSV, JSON Lines or Parquet)"),
    "pick": Command("pick", "choose which images to label next"),
    "cache": Command("cache", "list or clear the activation cache"),
    "embed": Command("embed", "compute image features with a run or backbone=NAME"),
    "search": Command("search", "find nearest images and near-duplicates, measure retrieval"),
    "cluster": Command("cluster", "group images, and list labels that look wrong"),
    "classify": Command("classify", "fit nearest neighbours and logistic regression on features"),
    "report": Command("report", "write the report of a run again"),
    "serve": Command("serve", "serve a trained run over HTTP"),
    "export": Command("export", "export the model to other formats, and check it"),
}

# commands by the names that other tools give them
SYNONYMS = {
    **dict.fromkeys(("fit", "learn", "finetune", "run"), "train"),
    **dict.fromkeys(("test", "eval", "val", "validate", "score"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "prediction"), "predict"),
    **dict.fromkeys(("lr_find", "lrfind", "find-lr", "lr-finder"), "lr-find"),
    **dict.fromkeys(("check", "inspect", "analyze", "analyse", "stats"), "audit"),
    **dict.fromkeys(("convert", "save", "onnx"), "export"),
    **dict.fromkeys(("features", "encode", "extract"), "embed"),
    **dict.fromkeys(("config", "options", "keys", "conf", "params"), "settings"),
    **dict.fromkeys(("continue", "restart"), "resume"),
    **dict.fromkeys(("summary", "dry-run", "dryrun"), "plan"),
    **dict.fromkeys(("ls", "list", "history", "compare"), "runs"),
    **dict.fromkeys(("benchmark", "strategies"), "ladder"),
}

EXAMPLES = """\
examples:
  finetune experiment=digits
      a first run, offline, on the digits inside the package
  finetune ~/pets
      your folder: DIR/<class>/*, staged from the head down
  finetune plan ~/pets freeze=stem,layer1 epochs=5
      what would happen, as a table"""


def overview() -> str:
    """Return the text of ``finetune --help``."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "finetune: staged transfer learning for images",
            "",
            "usage: finetune [COMMAND] [DIR | RUN] [key=value ...] [--traceback]",
            "",
            *rows,
            "",
            EXAMPLES,
            "",
            "finetune COMMAND --help has its arguments. RUN is a run or a bundle folder.",
        ]
    )


def split_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command and the remaining words; ``train`` if the first word is an override or an option.

    Raises:
        UserError: The first word is not a command.

    >>> split_command(["experiment=digits"])
    ('train', ['experiment=digits'])
    >>> split_command(["plan", "data=digits"])
    ('plan', ['data=digits'])
    """
    first = argv[0]
    if first in COMMANDS:
        return first, list(argv[1:])
    follows_equals = len(argv) > 1 and argv[1].startswith("=")
    if "=" in first or follows_equals or first.startswith(("-", "+", "~")) or os.path.exists(first):
        return "train", list(argv)
    from finetune.config.groups import group_choices
    from finetune.config.timm_names import is_timm_name

    if any(first in choices for choices in group_choices().values()) or is_timm_name(first):
        # answered there with the setting that it is a value of
        return "train", list(argv)
    if first in SYNONYMS:
        raise UserError(
            f"finetune {first}: no such command.\nUse: {shlex.join(['finetune', SYNONYMS[first], *argv[1:]])}"
        )
    from finetune.near_paths import near_path

    folder = near_path(first, folders=True)
    if "/" in first:
        hint = f" Did you mean {folder!r}?" if folder else ""
        raise UserError(f"{first}: no such folder. finetune takes a folder of images, or a command.{hint}")
    hint = did_you_mean(first, [*COMMANDS, *([folder] if folder else [])])
    raise UserError(f"finetune {first}: no such command or folder. Commands: {', '.join(COMMANDS)}.{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 is success, 1 a failed run, 2 a user error, 130 Ctrl-C. A run that another signal stops ends with 128 plus the signal's
    number: 143 for SIGTERM, 138 for SIGUSR1, 140 for SIGUSR2, 129 for SIGHUP.
    """
    with guarded_output():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in given or os.environ.get("FINETUNE_TRACEBACK", "") not in ("", "0")
    given = [word for word in given if word != "--traceback"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if given[0] in ("--version", "-V", "version"):
        from importlib.metadata import version

        print(version("stagewise-finetune"))
        return 0
    show_log()
    try:
        if _is_completion(given):
            from finetune.commands.completion import run

            return run(given, {name: command.composes for name, command in COMMANDS.items()}, _run)
        return _run(*split_command(given))
    except SystemExit as left:
        # the parser has printed the help
        return int(left.code or 0)
    except UserError as error:
        return _fail(error, status=2, show_traceback=show_traceback, line=corrected_line(str(error), given))
    except KeyboardInterrupt as error:
        status = error.status if isinstance(error, Interrupted) else 130
        return _fail(error, status=status, show_traceback=show_traceback)
    except BrokenPipeError:
        # the reader of the pipe has exited, as with `| head`; there is nobody left to write to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RunError as error:
        return _fail(error, status=1, show_traceback=show_traceback)
    except OSError as error:
        explained = file_error(error, None, "could not be read or written")
        return _fail(error if show_traceback else explained or error, status=1, show_traceback=show_traceback)
    except Exception as error:
        in_a_sentence = None if show_traceback else _without_memory(error)
        return _fail(in_a_sentence or error, status=1, show_traceback=show_traceback)


def _without_memory(error: Exception) -> RunError | None:
    """Return the message for an allocation that failed; None for another error. Torch's own type is a RuntimeError's text."""
    if not out_of_memory(error):
        return None
    size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return RunError(
        f"Out of memory{f', at {size[1]} more' if size else ''}. Free memory, or use smaller batches (data.batch_size), "
        "a smaller input.size or fewer loader processes (data.num_workers)."
    )


def _run(name: str, rest: list[str]) -> int:
    return int(importlib.import_module(f"finetune.commands.{COMMANDS[name].module}").run(rest))


def _is_completion(argv: Sequence[str]) -> bool:
    return argv[0] in ("-sc", "--shell-completion")


def _fail(error: BaseException, *, status: int, show_traceback: bool, line: str | None = None) -> int:
    if not is_rank_zero():
        # Ctrl-C reaches every process of a run, but only one of them reports it
        if isinstance(error, KeyboardInterrupt):
            return status
        print(f"{process_name()}: ", end="", file=sys.stderr)
    if show_traceback:
        traceback.print_exception(error)
    elif isinstance(error, (UserError, RunError)):
        print(error, *([f"Use: {line}"] if line else []), sep="\n", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print(str(error) or "Stopped.", file=sys.stderr)
    else:
        print(f"{first_line(error, with_type=True)}\nRun again with --traceback to see where.", file=sys.stderr)
    return status


def entry() -> NoReturn:
    """Run :func:`main` as the process of the installed command."""
    open_missing_streams()
    collect_garbage_rarely()
    leave(main())


if __name__ == "__main__":
    entry()
