"""Commands that take a run's configuration: ``key=value`` through Hydra, errors in our own words."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config import check_overrides, conf_dir, group_choices, hydra_message, register_schema, to_config
from finetune.config_schema import Config
from finetune.errors import UserError, did_you_mean
from finetune.processes import environment_restored

Task = Callable[[Config], int]

_WITH_VALUE = {"--config-dir", "-cd", "--config-name", "-cn", "--cfg", "-c", "--package", "-p"}
_FLAGS = {"--multirun", "-m", "--resolve", "--info", "-i", "--hydra-help"}


@dataclass
class Line:
    """A command line taken apart: overrides, and options that are Hydra's."""

    overrides: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)
    wants_help: bool = False


def parse_line(command: str, argv: Sequence[str]) -> Line:
    """Tell overrides from options.

    Raises:
        UserError: A word is neither.

    >>> parse_line("train", ["data=digits", "-m", "--cfg", "job"]).overrides
    ['data=digits']
    """
    line = Line()
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
    """Compose the configuration and hand it to a task; with ``-m``, once for each combination.

    A job of a sweep that fails does not stop the others; its error is raised when they are through.

    Args:
        command: Its name.
        argv: What followed the name.
        task: Returns an exit status.
        about: Help in a few lines.

    Raises:
        UserError: The command line or the configuration is wrong.
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

    register_schema()
    statuses: list[int] = []
    failures: list[Exception] = []
    program = sys.argv[0]

    def wrapped(composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        # DDP starts this program again with sys.argv: it must find the command, and of a sweep this job alone
        own = list(HydraConfig.get().overrides.task)
        folders = [word for folder in line.config_dirs for word in ("--config-dir", str(folder))]
        sys.argv = [program, command, *folders, *_named_config(line.options), *own]
        if "-m" in line.options or "--multirun" in line.options:
            composed.run_dir = composed.run_dir or HydraConfig.get().runtime.output_dir
        try:
            with environment_restored():
                statuses.append(task(to_config(composed)))
        except Exception as error:  # Hydra would print lines of its own around it; raised again below
            failures.append(error)

    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [program, *line.options, *overrides]
    # makes Hydra raise what goes wrong instead of printing it in its own way
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(wrapped)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error)) from error
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    if failures:
        raise failures[0]
    return max(statuses, default=0)


def _named_config(options: Sequence[str]) -> list[str]:
    """The option that names another primary configuration, as given."""
    at = next((at for at, word in enumerate(options) if word in ("--config-name", "-cn")), None)
    return [] if at is None else list(options[at : at + 2])


def help_text(command: str, about: str, config_dirs: Sequence[Path] = ()) -> str:
    """Help of a command that takes a configuration: its groups with their choices, and its keys."""
    groups = "\n".join(f"  {name}={' | '.join(names)}" for name, names in group_choices(config_dirs).items())
    return f"""\
usage: finetune {command} key=value ...

{about}

choices (conf/ in the package; your own by --config-dir DIR):
{groups}

often used:
  data.root=DIR                 your folder of images: DIR/<class>/* or DIR/{{train,val,test}}/<class>/*
  freeze=[stem,layer1]          stages that never train
  schedule.lr=1e-3              of every phase that sets none itself; also epochs, batch_norm, weight_decay, ...
  schedule.phases.1.epochs=5    of one phase, counted from 0; also train, lr, layer_decay, stage_lr, ...
  backbone.weights=PATH         imagenet | none | a .safetensors or .pth file
  input.channels=1              grey images; input.adapt=expand | fold | sum | reinit
  trainer.devices=2             and any other argument of Lightning's Trainer
  seed=0   name=NAME   run_dir=DIR

options:
  -m, --multirun      every combination of comma-separated values: finetune {command} -m seed=1,2 schedule=frozen,full
  --cfg job           print the composed configuration and stop
  --config-dir DIR    a folder with further configurations
  --traceback         show where an error came from"""
