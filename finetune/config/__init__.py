"""The configuration: locates ``conf/``, composes it, and explains mistakes in it.

Only this module and the commands use Hydra and OmegaConf. It does not import torch, so a mistyped key is reported in well
under a second.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config.checks import check
from finetune.config.plain_yaml import read_plain_yaml
from finetune.config.schema import Config
from finetune.config.trust import RUN_DIR
from finetune.errors import ConfigError, UserError, did_you_mean


def conf_dir() -> Path:
    """Return the folder of packaged configurations: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent.parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def group_choices(extra_dirs: Sequence[Path] = ()) -> dict[str, list[str]]:
    """Return config groups and their choices, from the package and the user's folders, sorted.

    >>> group_choices()["head"]
    ['cosine', 'linear', 'mlp', 'own']
    """
    choices: dict[str, set[str]] = {}
    for folder in (conf_dir(), *extra_dirs):
        for path in folder.glob("*/*.yaml"):
            if path.parent.name != "hydra":
                choices.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(choices.items())}


def _plain(annotation: Any) -> Any:
    """Return ``X`` for ``Optional[X]``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation


def find_key(path: str) -> tuple[str | None, bool]:
    """Look up a dotted path in the schema.

    Returns:
        The reason why the path is not a key, or None if it is one; and whether it lies in a free-form part, such as ``trainer``.

    >>> find_key("schedule.phases.1.train")
    (None, False)
    >>> find_key("trainer.max_time")
    (None, True)
    >>> find_key("backbone.wieghts")[0]
    "no such key. Keys of backbone: source, name, weights, kwargs, _target_, stages. Did you mean 'backbone.weights'?"
    """
    at: Any = Config
    walked: list[str] = []
    for part in path.split("."):
        at = _plain(at)
        if dataclasses.is_dataclass(at):
            hints = typing.get_type_hints(at)
            if part not in hints:
                prefix = ".".join(walked)
                known = list(hints)
                near = did_you_mean(part, known)
                if near and prefix:
                    near = near.replace("'", f"'{prefix}.", 1)
                return f"no such key. Keys of {prefix or 'the configuration'}: {', '.join(known)}.{near}", False
            at = hints[part]
        elif typing.get_origin(at) is list:
            if not part.isdigit():
                return f"{'.'.join(walked)} is a list; its entries are numbered from 0.", False
            at = typing.get_args(at)[0]
        elif typing.get_origin(at) is dict or at is Any:
            return None, True
        else:
            return f"{'.'.join(walked)} is a single value and has no key {part!r}.", False
        walked.append(part)
    return None, typing.get_origin(_plain(at)) is dict


def check_overrides(overrides: Sequence[str], extra_dirs: Sequence[Path] = ()) -> list[str]:
    """Refuse overrides that name no key, no group or no choice, and report all of them at once.

    Returns:
        The overrides in Hydra's form: new keys in free-form parts need its ``++``, which users need not know.

    Raises:
        ConfigError: One message for each wrong override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups = group_choices(extra_dirs)
    problems: list[str] = []
    accepted: list[str] = []
    parser = OverridesParser.create()
    for text in overrides:
        accepted.append(text)
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            why = str(error).splitlines()[0]
            problems.append(f"{text}: not an override. {why}. Write key=value, and quote values with spaces or '='.")
            continue
        key = override.key_or_group.split("@")[0].lstrip("/")
        if key.startswith("hydra") and key not in groups:
            continue
        if key in groups and not override.is_delete():
            # a group whose default is an empty choice is already in the defaults list, so Hydra must not append it
            accepted[-1] = text.removeprefix("+")
            names = override.value() if not override.is_sweep_override() else override.sweep_string_iterator()
            if names is None:
                problems.append(f"{text}: not a choice. Leave it out to have none.")
            elif not isinstance(names, (list, typing.Iterator)):
                names = [names]
            for name in names or []:
                if str(name) not in groups[key]:
                    problems.append(
                        f"{key}={str(name)!r}: not a choice. Choices: {', '.join(groups[key])}."
                        f"{did_you_mean(str(name), groups[key])}"
                    )
            continue
        why_not, free = find_key(key)
        if why_not:
            problems.append(f"{text}: {why_not}")
        elif free and not text.startswith(("+", "~")):
            accepted[-1] = f"++{text}"
    if problems:
        raise ConfigError(problems)
    return accepted


def as_hydra_writes(overrides: Sequence[str]) -> list[str]:
    """Return single-value overrides as the jobs of a sweep repeat them, without overrides of several values.

    >>> as_hydra_writes(["report=false", "seed=1,2"])
    ['report=False']
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        f"{override.get_key_element()}={override.get_value_element_as_str()}"
        for override in parsed
        if not override.is_sweep_override()
    ]


def register_schema() -> None:
    """Register the dataclasses with Hydra, so that composition itself checks names and types."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: Any) -> Config:
    """Convert a composed OmegaConf node to the plain dataclass, with every interpolation resolved.

    Raises:
        ConfigError: A mandatory value is missing, or a value has the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        typed = OmegaConf.merge(OmegaConf.structured(Config), composed)
        run_dir = typed.run_dir
        typed.run_dir = RUN_DIR
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise ConfigError([f"{key}: must be given. Write {key}=... on the command line." for key in missing])
        config = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise UserError(omegaconf_message(error)) from error
    assert isinstance(config, Config)
    config.run_dir = run_dir
    check(config)
    return config


def omegaconf_message(error: Exception) -> str:
    """Return one line from an OmegaConf or Hydra error: the key, its value and the expected value."""
    first = str(getattr(error, "msg", None) or error).strip().splitlines()[0]
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


def compose(overrides: Sequence[str]) -> Config:
    """Compose the configuration of a run from overrides, as the command line does.

    Raises:
        UserError: An override is wrong.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    accepted = check_overrides(overrides)
    register_schema()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose("train", overrides=accepted)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(hydra_message(error)) from error
    return to_config(composed)


# launcher or sweeper that Hydra does not include -> package to install
PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}


def hydra_message(error: BaseException) -> str:
    """Return one message from a Hydra error: its first line, and its cause if that says more.

    >>> hydra_message(ValueError("Could not find 'hydra/launcher/ray'"))
    'hydra/launcher=ray: its plugin is not installed. Install it: pip install hydra-ray-launcher'
    """
    missing_plugin = re.search(r"Could not find '(hydra/(?:launcher|sweeper))/(\w+)'", str(error))
    if missing_plugin:
        group, name = missing_plugin.groups()
        if name in PLUGINS:
            return f"{group}={name}: its plugin is not installed. Install it: pip install {PLUGINS[name]}"
        return f"{group}={name}: not known. Plugins that Hydra may have: {', '.join(PLUGINS)}.{did_you_mean(name, PLUGINS)}"
    several = re.search(r"Ambiguous value for argument '(.+?)'", str(error))
    if several:
        return f"{several[1]}: several values. Add -m to run each of them; write key=[value1,value2] for a list."
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if "not a subclass of PhaseConfig" in str(error):
        return f"{lines[0].split()[-1]}: there is no phase of that number. Phases are numbered from 0."
    cause = error.__cause__
    if cause is not None and str(cause).strip():
        why = str(cause).strip().splitlines()[0]
        if why not in lines[0]:
            return f"{lines[0].rstrip('.')}: {why}"
    useful = [line for line in lines if not line.startswith(("full_key", "object_type", "Set the environment"))]
    return ". ".join(line.rstrip(".") for line in useful[:2]) + "."


def quoted(value: object) -> str:
    """Quote a value for Hydra's override grammar, whatever characters it holds.

    >>> quoted("a b=c")
    "'a b=c'"
    """
    # Hydra reads backslashes literally, except a run of them before a quote
    text = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), str(value))
    return f"'{text}'"
