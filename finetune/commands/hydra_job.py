"""Commands that take a run's configuration: ``key=value`` through Hydra, with our own error messages."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config import (
    as_hydra_writes,
    check_overrides,
    conf_dir,
    group_choices,
    hydra_message,
    register_schema,
)
from finetune.config.schema import Config
from finetune.errors import UserError, did_you_mean

Task = Callable[[Config], int]

_WITH_VALUE = {"--config-dir", "-cd", "--config-name", "-cn", "--cfg", "-c", "--package", "-p"}
_FLAGS = {"--multirun", "-m", "--resolve", "--info", "-i", "--hydra-help"}


@dataclass
class CommandLine:
    """A parsed command line: overrides, and the options of Hydra."""

    overrides: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)
    wants_help: bool = False


def parse_line(command: str, argv: Sequence[str]) -> CommandLine:
    """Separate overrides from options.

    Raises:
        UserError: A word is neither.

    >>> parse_line("train", ["data=digits", "-m", "--cfg", "job"]).overrides
    ['data=digits']
    """
    line = CommandLine()
    words = list(argv)
    while words:
        word = words.pop(0)
        option, joined, value = word.partition("=")
        if word in ("-h", "--help"):
            line.wants_help = True
        elif option in _WITH_VALUE and word.startswith("-"):
            if not joined:
                if not words:
                    raise UserError(f"{option}: needs a value.")
                value = words.pop(0)
            if option in ("--config-dir", "-cd"):
                folder = Path(value).expanduser()
                if not folder.is_dir():
                    raise UserError(f"--config-dir {value}: no such folder.")
                line.config_dirs.append(folder)
            line.options += [option, value]
        elif word in _FLAGS or word.startswith("--info="):
            line.options.append(word)
        elif word.startswith("-"):
            known = sorted(_WITH_VALUE | _FLAGS | {"--help", "--traceback"})
            raise UserError(f"{word}: no such option. Options: {', '.join(known)}.{did_you_mean(word, known)}")
        elif "=" in word or word.startswith("~"):
            line.overrides.append(word)
        else:
            raise UserError(f"{word}: not understood. finetune {command} takes key=value, for example data=digits.")
    return line


def run_composed(command: str, argv: Sequence[str], task: Task, *, about: str) -> int:
    """Compose the configuration and pass it to a task, or in a sweep once for each combination.

    A failed job of a sweep does not stop the others; the table of all jobs and the error follow when all jobs are done.

    Args:
        command: Name of the command.
        argv: Words after the command name.
        task: Function that runs the command on a configuration and returns an exit status.
        about: Help text of a few lines.

    Raises:
        UserError: The command line or the configuration is wrong.
        RunError: Jobs of a sweep failed.
    """
    line = parse_line(command, argv)
    if line.wants_help:
        print(help_text(command, about, line.config_dirs))
        return 0
    overrides = check_overrides(line.overrides, line.config_dirs)
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from finetune.commands.jobs import Job, Refused, SweepStart
    from finetune.commands.sweep_table import conclude

    register_schema()
    program = sys.argv[0]
    folders = [word for folder in line.config_dirs for word in ("--config-dir", str(folder))]
    job = Job(
        task=task,
        words=(program, command, *folders, *_named_config(line.options)),
        starter=os.getpid(),
        common=frozenset(as_hydra_writes(overrides)),
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
        conclude(SweepStart.folder, ended=isinstance(error, Exception))
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
    elif "error" in job.outcome:
        raise job.outcome["error"]
    return int(job.outcome.get("status", 0))


def _named_config(options: Sequence[str]) -> list[str]:
    """Return the option that names another primary configuration, as given."""
    at = next((at for at, word in enumerate(options) if word in ("--config-name", "-cn")), None)
    return [] if at is None else list(options[at : at + 2])


def help_text(command: str, about: str, config_dirs: Sequence[Path] = ()) -> str:
    """Return the help of a command that takes a configuration: its groups with their choices, and its keys."""
    groups = "\n".join(f"  {name}={' | '.join(names)}" for name, names in group_choices(config_dirs).items())
    return f"""\
usage: finetune {command} key=value ...

{about}

choices (conf/ in the package; your own by --config-dir DIR):
{groups}

often used:
  data.root=DIR                 your folder of images: DIR/<class>/* or DIR/{{train,val,test}}/<class>/*
  freeze=[stem,layer1]          stages that never train
  schedule.lr=1e-3              of every phase that sets none; also epochs, batch_norm, weight_decay, ...
  schedule.phases.1.epochs=5    of one phase, counted from 0; also train, lr, layer_decay, stage_lr, ...
  backbone.weights=PATH         imagenet | none | a .safetensors or .pth file
  input.channels=1              grey images; input.adapt=expand | fold | sum | reinit
  trainer.devices=2             and any other argument of Lightning's Trainer
  seed=0   name=NAME   run_dir=DIR

options:
  -m, --multirun      every combination of comma-separated values: finetune {command} -m seed=1,2 schedule=frozen,full;
                      sweep=NAME takes the values, and how to run them, from conf/sweep/
  --cfg job           print the composed configuration and stop
  --config-dir DIR    a folder with further configurations
  --traceback         show where an error came from"""
