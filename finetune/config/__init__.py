"""The configuration: locates ``conf/``, composes it, and explains mistakes in it.

Only ``finetune.config``, ``finetune.build`` and the commands use Hydra and OmegaConf. This module does not import torch, so a
mistyped key is reported in well under a second.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config.checks import check
from finetune.config.groups import conf_dir as conf_dir
from finetune.config.groups import group_choices as group_choices
from finetune.config.keys import find_key as find_key
from finetune.config.overrides import as_hydra_writes as as_hydra_writes
from finetune.config.overrides import check_overrides as check_overrides
from finetune.config.overrides import command_line as command_line
from finetune.config.overrides import quoted as quoted
from finetune.config.overrides import values_of
from finetune.config.plain_yaml import read_plain_yaml
from finetune.config.schema import Config, DataConfig, PhaseConfig
from finetune.config.whole_schedule import spread
from finetune.errors import ConfigError, UserError, did_you_mean, first_line
from finetune.listed_classes import RUN_DIR


@functools.cache
def register_schema() -> None:
    """Register the dataclasses with Hydra, so that composition itself checks names and types."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: Any) -> Config:
    """Convert a composed OmegaConf node to the plain dataclass, with every interpolation and every ``~`` resolved.

    A setting typed on the command line, in a file or in Python becomes a setting of the run here, so no later place asks about
    ``~``. Relative paths stay as typed, for messages; :mod:`finetune.build.paths` makes those that are recorded absolute.

    Raises:
        ConfigError: A mandatory value is missing, or a value has the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        typed = OmegaConf.merge(OmegaConf.structured(Config), _with_home(composed))
        run_dir = typed.run_dir
        typed.run_dir = RUN_DIR
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise ConfigError([f"{key}: must be given. Set {key}=... on the command line." for key in missing])
        config = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise UserError(omegaconf_message(error)) from error
    assert isinstance(config, Config)
    config.run_dir = run_dir
    check(config)
    return spread(config)


def _with_home(values: Any) -> Any:
    """Return a configuration with every text that begins with ``~`` as a path from the home folder, but ``~`` alone."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    if isinstance(values, (DictConfig, ListConfig)):
        values = OmegaConf.to_container(values)
    if isinstance(values, dict):
        return {key: _with_home(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_with_home(value) for value in values]
    return (
        os.path.expanduser(values) if isinstance(values, str) and values.startswith("~") and values != "~" else values
    )


def with_overrides(config: Config, accepted: Sequence[str]) -> Config:
    """Return a configuration that exists already with checked overrides applied.

    Raises:
        UserError: A value does not fit.
    """
    from omegaconf import OmegaConf

    base = OmegaConf.create(to_plain(config))
    for key, value in values_of(accepted).items():
        OmegaConf.update(base, key, value, force_add=True)
    return to_config(base)


def omegaconf_message(error: Exception) -> str:
    """Return one line from an OmegaConf or Hydra error: the key, its value and the expected value."""
    first = first_line(error)
    key = getattr(error, "full_key", None)
    return f"{key}: {first}" if key and not first.startswith(str(key)) else first


def to_plain(config: Config) -> dict[str, Any]:
    """Return the configuration as plain containers, ready for JSON, YAML or a checkpoint."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """Return the configuration as readable YAML; :func:`from_yaml` reads it back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def from_yaml(path: Path) -> Config:
    """Read a configuration from a run folder as data: nothing in it is resolved, and nothing it names is built here.

    Raises:
        UserError: The file is missing, is not in the form that a run writes, or does not fit the schema.
    """
    values = read_plain_yaml(path)
    try:
        return to_config(values)
    except ConfigError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def data_settings(values: object) -> DataConfig:
    """Build the section ``data`` from plain values in a file, as data: nothing in it is resolved.

    Raises:
        UserError: A value does not fit the schema, or refers to another.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(values, dict) or "${" in json.dumps(values):
        raise UserError("data: must be settings, each with its value itself.")
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), values))
    except OmegaConfBaseException as error:
        raise UserError(omegaconf_message(error)) from error
    assert isinstance(settings, DataConfig)
    return settings


def compose(overrides: Sequence[str], *, phases: Sequence[PhaseConfig] | None = None) -> Config:
    """Compose the configuration of a run from overrides, as the command line does.

    Args:
        overrides: Words as typed.
        phases: Phases of a schedule of the user's own, in place of those of the schedule that the overrides name; None keeps
            them.

    Raises:
        UserError: An override is wrong.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    accepted = check_overrides(overrides)
    register_schema()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose("train", overrides=accepted)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error)) from error
    if phases is None:
        return to_config(composed)
    values: Any = OmegaConf.to_container(composed)
    values["schedule"] |= {"name": "custom", "phases": list(map(dataclasses.asdict, phases))}
    return to_config(values)


def composed_yaml(overrides: Sequence[str], config_dirs: Sequence[Path] = (), config_name: str = "train") -> str:
    """Return a composed configuration as YAML, headed by a comment that lists what differs from the defaults.

    Args:
        overrides: Checked overrides.
        config_dirs: Folders with further configurations.
        config_name: Name of the primary configuration.

    Raises:
        UserError: It cannot be composed.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_schema()
    GlobalHydra.instance().clear()
    folders = [conf_dir(), *config_dirs]
    # Hydra looks for the primary configuration in one folder alone
    first = next((folder for folder in folders if (folder / f"{config_name}.yaml").is_file()), conf_dir())
    places = ",".join(quoted(f"file://{folder.absolute()}") for folder in folders if folder != first)
    search = [f"hydra.searchpath=[{places}]"] if config_dirs else []
    try:
        with initialize_config_dir(str(first.absolute()), version_base="1.3"):
            composed = hydra_compose(config_name, overrides=[*search, *overrides])
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            usual = hydra_compose("train")
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error)) from error
    before, after = flat(OmegaConf.to_container(usual)), flat(OmegaConf.to_container(composed))
    lines = [
        f"#   {key}: {before.get(key, 'not set')} -> {after.get(key, 'gone')}"
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key) and (key in after or before[key] not in ("null", "[]", "{}"))
    ]
    head = ["# differs from the defaults:", *lines] if lines else ["# nothing differs from the defaults"]
    return "\n".join([*head, OmegaConf.to_yaml(composed).rstrip()])


def flat(values: Any, path: str = "") -> dict[str, str]:
    """Return the values of nested containers by their dotted paths, as text."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    nested = isinstance(values, dict) or any(isinstance(value, (dict, list)) for _, value in pairs)
    if not values or not nested:
        return {path: "null" if values is None else str(values)}
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    found: dict[str, str] = {}
    for key, value in pairs:
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


# launcher or sweeper that Hydra does not include -> package to install
PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}


_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def _hidden_interruption(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interruption during whose handling an error was raised, if there is one."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, KeyboardInterrupt):
            return one
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            waiting += [one.__cause__, one.__context__]
    return None


def hydra_message(error: BaseException) -> str:
    """Return one message from a Hydra error: its first line, and its cause if that says more.

    Raises:
        KeyboardInterrupt: A signal caused it: OmegaConf may fail while an interruption passes through it, and hide that.

    >>> hydra_message(ValueError("Could not find 'hydra/launcher/ray'"))
    'hydra/launcher=ray: its plugin is not installed. Install it: pip install hydra-ray-launcher'
    """
    if (stopped := _hidden_interruption(error)) is not None:
        raise stopped
    missing_plugin = re.search(r"Could not find '(hydra/(?:launcher|sweeper))/(\w+)'", str(error))
    if missing_plugin:
        group, name = missing_plugin.groups()
        if name in PLUGINS:
            return f"{group}={name}: its plugin is not installed. Install it: pip install {PLUGINS[name]}"
        return f"{group}={name}: not known. Plugins that Hydra may have: {', '.join(PLUGINS)}.{did_you_mean(name, PLUGINS)}"
    several = re.search(r"Ambiguous value for argument '(.+?)'", str(error))
    if several:
        return f"{several[1]}: several values. Add -m to run each of them; use key=[value1,value2] for a list."
    whole = f"{str(error).strip()}: {error.__cause__}"
    wrong_type = re.match(r"Error merging override \+*(.+?): Value .* could not be converted to (\w+)", whole)
    if wrong_type and wrong_type[2] in _KINDS:
        return f"{wrong_type[1]}: must be {_KINDS[wrong_type[2]]}."
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if "not a subclass of PhaseConfig" in whole:
        name = re.search(r"schedule\.phases\.\d+[^\s:]*", whole)
        return f"{name[0] if name else lines[0].split()[-1]}: there is no phase of that number. Phases are numbered from 0."
    cause = error.__cause__
    if cause is not None and str(cause).strip():
        why = first_line(cause)
        if why not in lines[0]:
            return f"{lines[0].rstrip('.')}: {why}"
    useful = [line for line in lines if not line.startswith(("full_key", "object_type", "Set the environment"))]
    return ". ".join(line.rstrip(".") for line in useful[:2]) + "."
