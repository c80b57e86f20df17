"""Settings that have no effect, or less than their names say: each is reported in one line before a run starts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.config import whole_schedule
from finetune.config.schema import Config, PhaseConfig, PhaseSettings
from finetune.training.loss_kinds import LOSSES

# setting of all phases -> the key by which a phase replaces it
_SHARED = {f"schedule.{key}": key for key in PhaseSettings.__dataclass_fields__}
_SHARED |= {"data.batch_size": "batch_size", "data.augment": "augment", "optimizer": "optimizer"}
# settings that do not apply to a head that is solved instead of trained step by step
_OF_STEPS = {"epochs", "lr", "lr_schedule", "warmup_epochs", "optimizer", "batch_size", "layer_decay", "patience"}
# settings that apply only to stages below the head
_OF_THE_BACKBONE = {"layer_decay", "batch_norm", "parameters", "lora_rank"}


@dataclass(frozen=True)
class _Condition:
    """The condition under which a setting has an effect.

    Args:
        holds: Function that returns whether it has one in a configuration.
        needs: The setting that it belongs to.
    """

    holds: Callable[[Config], bool]
    needs: str


def _of_loss(name: str) -> _Condition:
    return _Condition(lambda config: config.loss.name == name, f"loss={name}")


def _of_head(key: str) -> _Condition | None:
    """Return the condition of a setting that only some kinds of heads have; None for any other setting."""
    section, _, name = key.partition(".")
    if section != "head":
        return None
    from finetune.models.heads import HEADS  # loads torch, which the run needs next

    kinds = [kind for kind, head in HEADS.items() if name in head.specific]
    return _Condition(lambda config: config.head.name in kinds, f"head={' or '.join(kinds)}") if kinds else None


_ONLY_WITH: Mapping[str, _Condition] = {
    **{f"loss.{key}": _of_loss(name) for name, kind in LOSSES.items() for key in kind.specific},
    "cache.max_gb": _Condition(lambda config: not _is_off(config), "a schedule.cache that is not off"),
    "data.fold": _Condition(lambda config: config.data.folds is not None, "data.folds=N"),
}


def notes(config: Config, typed: Mapping[str, Any]) -> list[str]:
    """Return a line for each typed setting that has no effect, or not on all phases.

    Args:
        config: Checked configuration.
        typed: Values of the overrides by their dotted keys.
    """
    lines = whole_schedule.notes(config, epochs=typed.get("epochs"), lr=typed.get("lr"))
    for key, value in typed.items():
        condition = _ONLY_WITH.get(key) or _of_head(key)
        if condition is not None and not condition.holds(config):
            lines.append(f"{key}={value}: has no effect. It belongs to {condition.needs}.")
        shared = _SHARED.get(key) or (_SHARED["optimizer"] if key.startswith("optimizer.") else None)
        if shared is not None and (line := _shared(config, key, value, shared, typed)):
            lines.append(line)
    return lines


def _shared(config: Config, key: str, value: Any, setting: str, typed: Mapping[str, Any]) -> str | None:
    """Return the line about a setting that all phases share, if it has no effect on some of them."""
    reached, other, unread = [], [], []
    for number, phase in enumerate(config.schedule.phases):
        value_here = getattr(phase, setting)
        if setting in _unread(config, phase):
            unread.append(phase.name)
        elif value_here not in (None, [], {}):
            if f"schedule.phases.{number}.{setting}" not in typed:
                other.append(f"{phase.name} ({setting}={value_here})")
        elif key.startswith("data.") and getattr(config.schedule, setting) is not None:
            return f"{key}={value}: has no effect. schedule.{setting} replaces it."
        else:
            solvable = (phase.solver or config.schedule.solver) == "auto" and setting in _OF_STEPS
            reached.append(f"{phase.name}{' (unless it is solved)' * solvable}")
    if not other and not (unread and not reached):
        return None
    remedy = ""
    if other and setting in ("epochs", "lr"):
        remedy = f" {setting}={value} sets the whole schedule."
    elif other:
        remedy = f" schedule.phases.N.{setting} sets one of them."
    why = [f"{', '.join(other)} set{'s' * (len(other) == 1)} its own"] if other else []
    why += [f"{', '.join(unread)} do{'es' * (len(unread) == 1)} not read it"] if unread else []
    if not reached:
        return f"{key}={value}: has no effect. {' and '.join(why)}.{remedy}"
    return f"{key}={value}: reaches only {', '.join(reached)}. {' and '.join(why)}.{remedy}"


def _unread(config: Config, phase: PhaseConfig) -> set[str]:
    """Return the settings that have no effect on a phase."""
    solver = phase.solver or config.schedule.solver
    unread = _OF_STEPS | _OF_THE_BACKBONE if solver == "lbfgs" else set()
    if (phase.parameters or config.schedule.parameters) != "lora":
        unread = unread | {"lora_rank"}
    return unread | (_OF_THE_BACKBONE if phase.train == ["head"] else set())


def _is_off(config: Config) -> bool:
    # YAML reads the bare word off as false
    chosen = [phase.cache if phase.cache is not None else config.schedule.cache for phase in config.schedule.phases]
    return all(cache in ("off", False) for cache in chosen)
