"""Commands that take a run's configuration: ``key=value`` through Hydra, with our own error messages."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.commands.options import Arguments
from finetune.config import (
    as_hydra_writes,
    check_overrides,
    command_line,
    composed_yaml,
    conf_dir,
    group_choices,
    hydra_message,
    register_schema,
)
from finetune.config.overrides import OverridesError, TypedLine
from finetune.config.schema import Config
from finetune.errors import ConfigError, UserError, did_you_mean
from finetune.foreign_words import FOREIGN

Task = Callable[[Config], int]

# options of Hydra that a composed command passes on
_WITH_VALUE = {"config_name": "--config-name", "cfg": "--cfg", "package": "--package", "info": "--info"}
_FLAGS = {"multirun": "--multirun", "resolve": "--resolve", "hydra_help": "--hydra-help"}

OFTEN_USED = """\
often used:
  DIR                           your folder of images: DIR/<class>/* or DIR/{train,val,test}/<class>/*; or a table (.csv)
  epochs=5   lr=1e-3            of the whole schedule: epochs of each phase; the highest rate, the others keep their ratio
  batch_size=8                  images in a step
  backbone=NAME                 a choice above, or any network of timm: backbone=efficientnet_b0
  weights=PATH                  imagenet | package | embedded | none | hub:NAME | a file or folder
  freeze=stem,layer1            stages that never train
  schedule.phases.1.epochs=5    of one phase, counted from 0; also train, lr, layer_decay, stage_lr, ...
  input.channels=1              grey images; input.adapt=expand | fold | sum | tile | reinit
  trainer.devices=2             and other arguments of Lightning's Trainer
  seed=0   name=NAME   run_dir=DIR
finetune settings lists every key with its default and its meaning; finetune settings WORD those about WORD."""


@dataclass
class CommandLine:
    """A parsed command line: overrides, and the options of Hydra."""

    overrides: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)
    several: bool = False


class ComposingArguments(Arguments):
    """The parser of a command that takes a run's configuration as key=value.

    Args:
        command: Name of the command.
        about: Help text of a few lines.
        sweeps: Whether the command takes the options of Hydra: several values, other configurations, printing.
    """

    def __init__(self, command: str, about: str, *, sweeps: bool = True) -> None:
        super().__init__(command, about)
        self.usage = f"finetune {command} key=value ... [options]"
        self._sweeps = sweeps
        self.add_argument("words", metavar="key=value", nargs="*", help="settings; a folder or a table of images")
        if not sweeps:
            return
        self.add_argument(
            "-m",
            "--multirun",
            action="store_true",
            help=f"every combination of comma-separated values: finetune {command} -m seed=1,2 schedule=frozen,full; "
            "sweep=NAME takes the values, and how to run them, from conf/sweep/",
        )
        self.add_argument(
            "-c", "--cfg", metavar="job", help="print the configuration, first what differs from the defaults, and stop"
        )
        self.add_argument(
            "-cd",
            "--config-dir",
            metavar="DIR",
            action="append",
            default=[],
            help="a folder with further configurations",
        )
        self.add_argument(
            "-cn", "--config-name", metavar="NAME", help="another configuration in place of conf/train.yaml"
        )
        for flag in ("-p --package", "-i --info"):
            self.add_argument(*flag.split(), help=argparse.SUPPRESS)
        for flag in ("--resolve", "--hydra-help"):
            self.add_argument(flag, action="store_true", help=argparse.SUPPRESS)

    def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, CommandLine]:
        """Return the values of all options, and the configuration's part of the line.

        Raises:
            UserError: A word or an option is wrong.
            SystemExit: The help was asked for, and has been printed.
        """
        given = self.read(argv)
        line = CommandLine(overrides=list(given.words))
        if not self._sweeps:
            return given, line
        for text in given.config_dir:
            folder = Path(text).expanduser()
            if not folder.is_dir():
                raise UserError(f"--config-dir {text}: no such folder.")
            line.config_dirs.append(folder)
            line.options += ["--config-dir", str(folder)]
        for name, option in _WITH_VALUE.items():
            if (value := getattr(given, name)) is not None:
                line.options += [f"{option}={value}"] if option == "--info" else [option, value]
        line.options += [option for name, option in _FLAGS.items() if getattr(given, name)]
        line.several = given.multirun or any(word.startswith("hydra.mode=MULTIRUN") for word in line.overrides)
        return given, line

    def help_for(self, words: Sequence[str]) -> str:
        """Return the help with the choices of ``conf/`` and of the user's folders."""
        following = zip(words, [*words[1:], ""], strict=True)
        named = [
            value if word in ("--config-dir", "-cd") else word.partition("=")[2]
            for word, value in following
            if word.startswith(("--config-dir", "-cd"))
        ]
        folders = [Path(text).expanduser() for text in named]
        groups = "\n".join(f"  {name}={' | '.join(names)}" for name, names in group_choices(folders).items())
        self.epilog = f"choices (conf/ in the package; your own by --config-dir DIR):\n{groups}\n\n{OFTEN_USED}"
        return super().help_for(words)

    def line_for(self, word: str, argv: Sequence[str]) -> str | None:
        """Answer a setting that is written as an option, ``--epochs 3``, with the line that sets it."""
        option, joined, value = word.partition("=")
        key = option.lstrip("-").replace("-", "_")
        words = list(argv)
        at = words.index(word)
        takes_next = not joined and _is_value(words[at + 1 :])
        if not joined:
            value = words[at + 1] if takes_next else "true"
        setting = f"{key}={value}"
        rest = [*words[:at], setting, *words[at + 1 + takes_next :]]
        if value.endswith((".yaml", ".yml")):
            file = Path(value)
            named = ["--config-dir", str(file.parent), "--config-name", file.stem]
            options, settings = self._apart([*words[:at], *named, *words[at + 2 - bool(joined) :]])
            return f"{option}: no such option. Use: {command_line(self.command, [*options, *settings])}"
        try:
            check_overrides([setting])
        except ConfigError as error:
            # as a setting it is not known either
            near = did_you_mean(option, self.flags())
            fix = re.search(r"Did you mean '([\w.]+)'", error.problems[0])
            if near or (fix is None and key.replace("-", "_") not in FOREIGN):
                return None
            raise self._refused(option, rest) from None
        return str(self._refused(option, rest))

    def _apart(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the options among the words, each with its value, and the other words; an unknown option is a setting."""
        options, others, rest = [], [], list(words)
        while rest:
            word = rest.pop(0)
            option, joined, value = word.partition("=")
            action = self._option_string_actions.get(option)
            if not word.startswith("-"):
                others.append(word)
            elif action is None:
                value = value if joined else rest.pop(0) if _is_value(rest) else "true"
                others.append(f"{option.lstrip('-').replace('-', '_')}={value}")
            else:
                takes_next = not joined and action.nargs != 0 and rest
                options += [word, *([rest.pop(0)] if takes_next else [])]
        return options, others

    def _refused(self, option: str, rest: Sequence[str]) -> UserError:
        options, settings = self._apart(rest)
        try:
            check_overrides(settings, line=TypedLine(self.command, before=tuple(options)))
        except OverridesError as error:
            if error.corrected is not None:
                return UserError(f"{option}: is a setting, not an option.\nUse: {error.corrected}")
        return UserError(
            f"{option}: is a setting, not an option.\nUse: {command_line(self.command, [*options, *settings])}"
        )


def _is_value(following: Sequence[str]) -> bool:
    """Tell whether the next word is the value of an option, not a setting or another option."""
    return bool(following) and "=" not in following[0] and not following[0].startswith("--")


def run_composed(command: str, line: CommandLine, task: Task) -> int:
    """Compose the configuration and pass it to a task, or in a sweep once for each combination.

    A failed job of a sweep does not stop the others; the table of all jobs and the error follow when all jobs are done.

    Args:
        command: Name of the command.
        line: The command line after the command's name.
        task: Function that runs the command on a configuration and returns an exit status.

    Raises:
        UserError: The command line or the configuration is wrong.
        RunError: Jobs of a sweep failed.
    """
    overrides = check_overrides(
        line.overrides, line.config_dirs, several=line.several, line=TypedLine(command, tuple(line.options))
    )
    if line.options[-2:] == ["--cfg", "job"] and not line.several:
        name = line.options[line.options.index("--config-name") + 1] if "--config-name" in line.options else "train"
        print(composed_yaml(overrides, line.config_dirs, name))
        return 0
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from finetune.commands.jobs import Job, Refused, SweepStart
    from finetune.commands.sweep_table import conclude

    register_schema()
    program = sys.argv[0]
    folders = [word for folder in line.config_dirs for word in ("--config-dir", str(folder))]
    at = line.options.index("--config-name") if "--config-name" in line.options else len(line.options)
    named = line.options[at : at + 2]
    job = Job(
        task=task,
        words=(program, command, *folders, *named),
        starter=os.getpid(),
        common=frozenset(as_hydra_writes(overrides)),
        own_files=bool(line.config_dirs),
    )
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [program, *line.options, *overrides]
    # makes Hydra raise errors instead of printing them in its own format
    os.environ["HYDRA_FULL_ERROR"] = "1"
    SweepStart.folder, SweepStart.command = None, command
    try:
        hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(job)()
    except Refused as refused:
        raise UserError(str(refused)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error)) from error
    except BaseException as error:
        if SweepStart.folder is None:
            raise
        # a sweeper that gives up after failures reports less than the jobs' records do; Ctrl-C leaves jobs unfinished
        conclude(SweepStart.folder, ended=isinstance(error, Exception), cause=error)
        raise
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    if SweepStart.folder is not None:
        conclude(SweepStart.folder, ended=True)
    elif job.outcome.error is not None:
        raise job.outcome.error
    return job.outcome.status
