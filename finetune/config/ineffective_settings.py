"""Settings that have no effect, or less than their names say: each is reported in one line before a run starts.

What only the data or the network shows is reported where these are built: splits that the data has, in
:mod:`finetune.data.assign_splits`; the input of the network, in :mod:`finetune.build.input_lines`; augmentation and caches, in
:mod:`finetune.activation_cache.policy`.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.config import whole_schedule
from finetune.config.schema import Config, PhaseConfig, PhaseSettings
from finetune.phases import HEAD
from finetune.training.loss_kinds import LOSSES
from finetune.training.lr_schedules import LR_SCHEDULES

log = logging.getLogger(__name__)

# setting that several phases share -> the key by which a phase replaces it, if one may
_SHARED = {f"schedule.{key}": key for key in PhaseSettings.__dataclass_fields__}
_SHARED |= {"data.batch_size": "batch_size", "data.augment": "augment", "optimizer": "optimizer"}
_SHARED |= {"head.drop_rate": "drop_rate", "checkpoint.every_n_steps": "every_n_steps", "compile": "compile"}
# settings that do not apply to a head that is solved instead of trained step by step
_OF_STEPS = {
    "epochs",
    "max_steps",
    "lr",
    "layer_decay",
    "lr_slice",
    "stage_lr",
    "lr_schedule",
    "warmup_epochs",
    "weight_decay",
    "batch_size",
    "optimizer",
    "carry_optimizer",
    "restore",
    "patience",
    "ema_decay",
    "gradient_clip",
    "accumulate",
    "drop_rate",
    "every_n_steps",
    "compile",
}
# settings that apply only to stages below the head
_OF_THE_BACKBONE = {"layer_decay", "batch_norm", "parameters", "lora_rank"}

# why a setting has no effect on a phase, for one phase and for several
_Reason = tuple[str, str]
_SOLVED: _Reason = ("solves its head without it", "solve their heads without it")
_HEAD_ALONE: _Reason = ("trains only the head", "train only the head")
_NO_ADAPTERS: _Reason = ("trains no adapters", "train no adapters")
_FIRST: _Reason = ("has no phase before it", "have no phase before them")
_CACHED: _Reason = ("trains on features cached without it", "train on features cached without it")
# nobody expects a setting to reach a phase to which it does not apply
_EXPECTED = (_SOLVED, _HEAD_ALONE, _NO_ADAPTERS, _FIRST, _CACHED)

_PHASE_KEY = re.compile(r"schedule\.phases\.(\d+)\.(\w+)")


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


_OF_A_LIBRARY = _Condition(
    lambda config: config.backbone._target_ is None, "a network of a library, not to backbone._target_"
)
_ONLY_WITH: Mapping[str, _Condition] = {
    **{f"loss.{key}": _of_loss(name) for name, kind in LOSSES.items() for key in kind.specific},
    "cache.max_gb": _Condition(lambda config: not _is_off(config), "a schedule.cache that is not off"),
    "data.fold": _Condition(lambda config: config.data.folds is not None, "data.folds=N"),
    "data.val_fraction": _Condition(
        lambda config: config.data.folds is None, "a single split, and data.folds makes several"
    ),
    "data.integer_range": _Condition(lambda config: config.data.high_depth == "full", "data.high_depth=full"),
    "data.float_range": _Condition(lambda config: config.data.high_depth == "full", "data.high_depth=full"),
    "backbone.name": _OF_A_LIBRARY,
    "backbone.source": _OF_A_LIBRARY,
    "head.weights": _Condition(
        lambda config: _first_solver(config) != "lbfgs", "a head that is trained step by step; this one is solved anew"
    ),
    "freeze": _Condition(lambda config: _freeze_pins(config), "stages that a phase names; these train only the head"),
    "name": _Condition(lambda config: not config.run_dir, "a run without run_dir and outside a sweep"),
}


def report(config: Config, given: Mapping[str, Any]) -> None:
    """Log what the given settings come to, and warn of those that have no effect, or not on all phases.

    Args:
        config: Checked configuration.
        given: Values that the user gave, by their dotted keys.
    """
    for line in whole_schedule.notes(config, epochs=given.get("epochs"), lr=given.get("lr")):
        log.info("%s", line)
    for line in notes(config, given):
        log.warning("%s", line)


def notes(config: Config, given: Mapping[str, Any]) -> list[str]:
    """Return a line for each given setting that has no effect, or not on all phases.

    Args:
        config: Checked configuration.
        given: Values that the user gave, by their dotted keys.
    """
    return [line for key, value in given.items() if (line := _note(config, key, value, given)) is not None]


def _note(config: Config, key: str, value: Any, given: Mapping[str, Any]) -> str | None:
    if value in (None, [], {}, False, "none"):
        return None
    phases = config.schedule.phases
    if of_a_phase := _PHASE_KEY.match(key):
        number, setting = int(of_a_phase[1]), of_a_phase[2]
        why = _unread(config, number).get(setting) if number < len(phases) else None
        return None if why is None else f"{key}={_as_typed(value)}: has no effect. {phases[number].name} {why[0]}."
    if key == "epochs" and all(_inherited(config, phase, "solver") == "lbfgs" for phase in phases):
        names = [phase.name for phase in phases]
        return f"epochs={value}: has no effect. {', '.join(names)} {_SOLVED[len(names) > 1]}."
    condition = _ONLY_WITH.get(key) or _of_head(key)
    if condition is not None and not condition.holds(config):
        return f"{key}={_as_typed(value)}: has no effect. It belongs to {condition.needs}."
    shared = _SHARED.get(key) or (_SHARED["optimizer"] if key.startswith("optimizer.") else None)
    return None if shared is None else _shared(config, key, value, shared, given)


def _as_typed(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_as_typed, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shared(config: Config, key: str, value: Any, setting: str, given: Mapping[str, Any]) -> str | None:
    """Return the line about a setting that phases share, if it has no effect on some of them."""
    reached: list[str] = []
    other: list[str] = []
    unread: dict[_Reason, list[str]] = {}
    for number, phase in enumerate(config.schedule.phases):
        value_here = getattr(phase, setting, None)
        if value_here not in (None, [], {}):
            if f"schedule.phases.{number}.{setting}" not in given:
                other.append(f"{phase.name} ({setting}={value_here})")
        elif (why := _unread(config, number).get(setting)) is not None:
            unread.setdefault(why, []).append(phase.name)
        elif not key.startswith("schedule.") and getattr(config.schedule, setting, None):
            return f"{key}={_as_typed(value)}: has no effect. schedule.{setting} replaces it."
        else:
            solvable = _inherited(config, phase, "solver") == "auto" and setting in _OF_STEPS
            reached.append(f"{phase.name}{' (unless it is solved)' * solvable}")
    if not other and (reached or not unread) and not set(unread) - set(_EXPECTED):
        return None
    remedy = ""
    if other and setting in ("epochs", "lr"):
        remedy = f" {setting}={value} sets the whole schedule."
    elif other:
        remedy = f" schedule.phases.N.{setting} sets one of them."
    why_not = [f"{', '.join(other)} {'sets its' if len(other) == 1 else 'set their'} own"] if other else []
    why_not += [f"{', '.join(names)} {why[len(names) > 1]}" for why, names in unread.items()]
    reach = f"reaches only {', '.join(reached)}" if reached else "has no effect"
    return f"{key}={_as_typed(value)}: {reach}. {' and '.join(why_not)}.{remedy}"


def _unread(config: Config, number: int) -> dict[str, _Reason]:
    """Return the settings that have no effect on a phase, each with the reason."""
    phase = config.schedule.phases[number]
    unread: dict[str, _Reason] = {}
    if number == 0:
        unread["carry_optimizer"] = _FIRST
    if LR_SCHEDULES[_inherited(config, phase, "lr_schedule")].has_own_warmup:
        by = _inherited(config, phase, "lr_schedule")
        unread["warmup_epochs"] = (f"warms up by lr_schedule={by}", f"warm up by lr_schedule={by}")
    for rates in ("lr_slice", "lr_trials"):
        if _inherited(config, phase, rates):
            unread |= dict.fromkeys(
                ("lr", "layer_decay"), (f"sets its rates by {rates}", f"set their rates by {rates}")
            )
    patience, epochs = _inherited(config, phase, "patience"), _inherited(config, phase, "epochs")
    if patience is not None and patience >= epochs:
        unread["patience"] = ("ends before that many epochs", "end before that many epochs")
    if _inherited(config, phase, "parameters") != "lora":
        unread["lora_rank"] = _NO_ADAPTERS
    if not _augments(config, phase):
        unread["augment"] = _CACHED
    if phase.train == [HEAD]:
        unread |= dict.fromkeys(_OF_THE_BACKBONE, _HEAD_ALONE)
    if _inherited(config, phase, "solver") == "lbfgs":
        unread |= dict.fromkeys(_OF_STEPS, _SOLVED)
    return unread


def _augments(config: Config, phase: PhaseConfig) -> bool:
    """Return whether a phase trains on changed images, as far as the configuration tells: not a head on cached features."""
    cache = _inherited(config, phase, "cache")
    if phase.train != [HEAD] or _inherited(config, phase, "mixup") or _inherited(config, phase, "cutmix"):
        return True
    if cache == "features":
        return False
    solves = _inherited(config, phase, "solver") != "gradient" or bool(_inherited(config, phase, "lr_trials"))
    # YAML reads the bare word on as true; auto caches nothing for a single epoch
    return cache not in ("auto", True) or not (solves or _inherited(config, phase, "epochs") > 1)


def _inherited(config: Config, phase: PhaseConfig, key: str) -> Any:
    value = getattr(phase, key)
    return getattr(config.schedule, key) if value in (None, [], {}) else value


def _first_solver(config: Config) -> str:
    """Return how the first phase that trains the head does it."""
    first = next((phase for phase in config.schedule.phases if {HEAD, "all"} & set(phase.train)), None)
    return "" if first is None else str(_inherited(config, first, "solver"))


def _freeze_pins(config: Config) -> bool:
    """Return whether a phase may name a stage that ``freeze`` freezes."""
    head_alone = all(phase.train == [HEAD] for phase in config.schedule.phases)
    return not head_alone or bool({HEAD, "all"} & set(config.freeze))


def _is_off(config: Config) -> bool:
    # YAML reads the bare word off as false
    chosen = [phase.cache if phase.cache is not None else config.schedule.cache for phase in config.schedule.phases]
    return all(cache in ("off", False) for cache in chosen)
