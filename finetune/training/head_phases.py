"""Phases that train the head alone, on cached features, without a Trainer: solved, or at several rates at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.training.interruption import Interruption
from finetune.training.linear_probe import solved_phase
from finetune.training.param_groups import OptimizerFactory
from finetune.training.phases import Phase
from finetune.training.rate_trials import tried_phase


def needs_no_trainer(phase: Phase) -> bool:
    """Whether a phase is one of these."""
    return phase.solver == "lbfgs" or bool(phase.lr_trials)


def what_it_does(phase: Phase) -> str:
    """In words, for the line at its start."""
    if phase.solver == "lbfgs":
        return "solving the head"
    return f"training {len(phase.lr_trials)} heads at lr {', '.join(f'{rate:g}' for rate in phase.lr_trials)}"


def setting_of(phase: Phase) -> str:
    """The setting that asks for it, for messages."""
    return "solver='lbfgs': solves the head" if phase.solver == "lbfgs" else "lr_trials: trains heads"


def head_phase(
    phase: Phase,
    *,
    views: int | None,
    make_optimizer: OptimizerFactory,
    seed: int,
    checkpoint: Path,
    interruption: Interruption,
    **shared: Any,
) -> dict[str, Any]:
    """The result of such a phase.

    Args:
        phase: Trains the head alone.
        views: Views of each training image in the cache.
        make_optimizer: Of the phase.
        seed: Of the run.
        checkpoint: Of trials that a signal stopped.
        interruption: Knows whether the run is to stop.
        **shared: What :func:`solved_phase` and :func:`tried_phase` both take.
    """
    if phase.solver == "lbfgs":
        return solved_phase(phase=phase, views=views, **shared)
    return tried_phase(
        phase=phase,
        make_optimizer=make_optimizer,
        seed=seed,
        checkpoint=checkpoint,
        interruption=interruption,
        **shared,
    )


def how_it_ended(result: Mapping[str, Any]) -> str:
    """In words, for the line at its end."""
    if "trials" in result:
        tried, epoch = len(result["trials"]), result["best_epoch"] + 1
        return f"with lr {result['rates']['head']:g} of {tried} tried, at epoch {epoch}"
    probe = result["probe"]
    end = "" if probe["converged"] else " (not converged)"
    return (
        f"with weight decay {probe['chosen']:.1e} of {len(probe['strengths'])} tried, {result['steps']} iterations{end}"
    )
