"""Settings of the whole schedule, ``epochs`` and ``lr``: they are spread over the phases once a configuration is composed."""

from dataclasses import replace

from finetune.config.schema import Config, PhaseConfig
from finetune.errors import ConfigError


def spread(config: Config) -> Config:
    """Return the configuration with ``epochs`` and ``lr`` in the phases and no longer at the top.

    Every phase trains for ``epochs``. ``lr`` becomes the highest rate of the schedule; other phases keep their ratio to it. A
    phase that solves its head where it can (``solver: auto``) gets its rate from ``schedule.lr``, because one of its own would
    mean that it is trained step by step.

    Raises:
        ConfigError: ``lr`` reaches no phase, or a phase sets its rates by other keys.

    >>> phases = [PhaseConfig(name="head", train=["head"]), PhaseConfig(name="all", train=["all"], lr=1e-4)]
    >>> config = Config()
    >>> config.schedule.phases, config.epochs, config.lr = phases, 2, 0.01
    >>> [(phase.epochs, phase.lr) for phase in spread(config).schedule.phases]
    [(2, 0.01), (2, 0.001)]
    """
    schedule = config.schedule
    phases = list(schedule.phases)
    if config.epochs is not None:
        phases = [replace(phase, epochs=config.epochs) for phase in phases]
        schedule = replace(schedule, epochs=config.epochs)
    if config.lr is not None:
        rates = _rates(config)
        factor = config.lr / max(rates.values())
        phases = [
            replace(phase, lr=_scaled(rates[number], factor))
            if number in rates and not (_is_auto(config, phase) and phase.lr is None)
            else phase
            for number, phase in enumerate(phases)
        ]
        schedule = replace(schedule, lr=None if schedule.lr is None else _scaled(schedule.lr, factor))
    return replace(config, schedule=replace(schedule, phases=phases), epochs=None, lr=None)


def notes(config: Config, *, epochs: int | None, lr: float | None) -> list[str]:
    """Return what ``epochs`` and ``lr`` come to, one line each; empty where none is set, or where it needs no words.

    Args:
        config: Configuration after :func:`spread`.
        epochs: Value before it.
        lr: Value before it.
    """
    phases = config.schedule.phases
    lines = []
    if epochs is not None:
        stepping = [phase.name for phase in phases if _inherited(config, phase, "solver") == "gradient"]
        solved = [phase.name for phase in phases if _inherited(config, phase, "solver") == "lbfgs"]
        perhaps = [phase.name for phase in phases if _is_auto(config, phase)]
        without = f"{', '.join(solved)} solve{'s' * (len(solved) == 1)} the head, without epochs"
        if (stepping or perhaps) and len(phases) > 1:
            named = [*stepping, *(f"{name} unless it is solved" for name in perhaps)]
            of_each = f"epochs={epochs}: of each phase ({', '.join(named)}), {epochs * len(stepping)} in all"
            of_each += f", {epochs * len(named)} if it is not" if perhaps else ""
            lines.append(f"{of_each}; {without}" if solved else of_each)
    if lr is not None and len(rates := _rates(config)) > 1:
        given = ", ".join(
            f"{phases[number].name} {rate:g}{' unless it is solved' * _is_auto(config, phases[number])}"
            for number, rate in rates.items()
        )
        lines.append(f"lr={lr:g}: {given}; the ratios of the schedule are kept")
    return lines


def _rates(config: Config) -> dict[int, float]:
    """Return the rates of the phases that have one, by their numbers."""
    rates: dict[int, float] = {}
    for number, phase in enumerate(config.schedule.phases):
        if _inherited(config, phase, "solver") == "lbfgs":
            continue
        for key in ("lr_slice", "lr_trials", "stage_lr"):
            if _inherited(config, phase, key):
                raise ConfigError(
                    [
                        f"lr={config.lr}: schedule.phases.{number} ({phase.name}) sets its rates by {key}. Change that, or "
                        "leave lr out."
                    ]
                )
        rate = _inherited(config, phase, "lr")
        assert isinstance(rate, float), "a schedule has a rate"
        rates[number] = rate
    if not rates:
        raise ConfigError(
            [
                f"lr={config.lr}: has no effect. schedule={config.schedule.name} solves its head, without a rate. Leave it out."
            ]
        )
    return rates


def _scaled(rate: float, factor: float) -> float:
    return float(f"{rate * factor:.6g}")


def _is_auto(config: Config, phase: PhaseConfig) -> bool:
    return _inherited(config, phase, "solver") == "auto"


def _inherited(config: Config, phase: PhaseConfig, key: str) -> object:
    value = getattr(phase, key)
    return getattr(config.schedule, key) if value in (None, [], {}) else value
