"""Which settings the user gave: typed, in a file of their own, or in Python."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from finetune.config.groups import conf_dir, group_choices
from finetune.config.keys import all_keys
from finetune.config.schema import PhaseConfig

# names of the values that stand for "not set"
_UNSET: tuple[object, ...] = (None, [], {})


def given_in_files(composed: Any, choices: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the values of a composed configuration that neither the schema nor the packaged ``conf/`` sets.

    Args:
        composed: The configuration as plain containers.
        choices: Choice of each group; those that ``conf/`` has are its own.
    """
    packaged: dict[str, Any] = {}
    # an experiment replaces what the other groups set
    for group, choice in sorted(choices.items(), key=lambda chosen: chosen[0] == "experiment"):
        if choice in group_choices().get(group, ()):
            packaged |= dict(_leaves(*_packaged(group, str(choice))))
    defaults = {key.path: key.default for key in all_keys()}

    def usual(path: str) -> Any:
        generic = ".".join("N" if part.isdigit() else part for part in path.split("."))
        return packaged.get(path, defaults.get(generic))

    return {path: value for path, value in _leaves(composed) if value not in _UNSET and str(value) != str(usual(path))}


def given_in_phases(phases: Sequence[PhaseConfig]) -> dict[str, Any]:
    """Return the settings of phases that were written in Python, by their dotted keys."""
    return {
        f"schedule.phases.{number}.{key}": value
        for number, phase in enumerate(phases)
        for key, value in asdict(phase).items()
        if value not in _UNSET
    }


def _packaged(group: str, choice: str) -> tuple[Any, str]:
    """Return what a file of ``conf/`` sets, and the section that it is about; empty for the whole configuration."""
    from omegaconf import OmegaConf

    file = conf_dir() / group / f"{choice}.yaml"
    package = re.match(r"# @package (\S+)", file.read_text(encoding="utf-8"))
    section = group if package is None else package[1].removeprefix("_global_")
    return OmegaConf.to_container(OmegaConf.load(file)), section


def _leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, and of lists of mappings, by their dotted paths."""
    if isinstance(values, Mapping):
        pairs = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list) and values and isinstance(values[0], Mapping):
        pairs = [(str(number), value) for number, value in enumerate(values)]
    else:
        yield path, values
        return
    for key, value in pairs:
        yield from _leaves(value, f"{path}.{key}" if path else key)
