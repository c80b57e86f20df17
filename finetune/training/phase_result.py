"""The result of a phase: made from what its training came to, and kept as ``result.json``, which marks the phase as finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.activation_cache.policy import CachePolicy
from finetune.checksums import remedy, verify, write_checked_json
from finetune.errors import UserError
from finetune.phases import ResolvedPhase
from finetune.plain import from_plain, to_plain
from finetune.results import EpochRow, PhaseResult, ProbeResult, TrialResult
from finetune.safe_files import inside, need, read_json
from finetune.training.callbacks.checkpoint_contents import ContentsError, check_rows

# fields that every finished phase has, but that an entry of results.json from another version may lack
_ALWAYS: dict[str, type | tuple[type, ...]] = {
    "rows": list,
    "cached_after": str,
    "cached_view": str,
    "views": int,
    "seconds": (int, float),
}
_FIELDS = set(PhaseResult.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the training of a phase came to, by whichever way the phase trains.

    Args:
        rows: Rows of ``metrics.csv``, one per epoch.
        steps: Optimizer steps that were run.
        rates: Peak learning rate of each stage that trained.
        best_epoch: Best epoch, from 0.
        best: The monitored metric of that epoch.
        probe: For a head that was solved, the penalties tried; else None.
        trials: For heads trained side by side, each with its rate; else None.
    """

    rows: tuple[EpochRow, ...]
    steps: int
    rates: Mapping[str, float]
    best_epoch: int
    best: float
    probe: ProbeResult | None = None
    trials: tuple[TrialResult, ...] | None = None


def passed_on(results: Sequence[PhaseResult]) -> EpochRow | None:
    """Return the row of the weights that the last of some phases passed on; None before the first phase."""
    for result in reversed(results):
        if result.restored != "start":
            assert result.rows, "a phase in memory has its rows"
            return result.rows[result.best_epoch if result.restored == "best" else -1]
    return None


def phase_result(
    phase: ResolvedPhase,
    trained: Trained,
    *,
    keeps_start: bool = False,
    monitor: str,
    policy: CachePolicy,
    seconds: float,
) -> PhaseResult:
    """Return the result of a phase.

    Args:
        phase: The phase.
        trained: What its training came to.
        keeps_start: Whether the weights that it began with were kept.
        monitor: Name of the monitored metric.
        policy: What the phase trained on.
        seconds: Wall time in this process.
    """
    return PhaseResult(
        name=phase.name,
        train=phase.train,
        frozen=phase.frozen,
        epochs=len(trained.rows),
        steps=trained.steps,
        restored="start" if keeps_start else "best" if phase.solves_head else phase.restore,
        weights="ema" if phase.ema_decay and not phase.needs_features else "raw",
        best_epoch=trained.best_epoch,
        best={monitor: trained.best},
        rates=trained.rates,
        rows=trained.rows,
        probe=trained.probe,
        trials=trained.trials,
        cached_after=policy.cached_stage or "",
        cached_view=policy.cached_view,
        views=policy.views or 0,
        seconds=round(seconds, 3),
    )


def write_phase_result(path: Path, result: PhaseResult) -> None:
    """Write the result of a phase and its checksum; from then on the phase counts as finished."""
    write_checked_json(path, to_plain(result))


def read_phase_result(path: Path, phase: ResolvedPhase, *, monitor: str) -> PhaseResult:
    """Read the result of a finished phase.

    Args:
        path: File of the phase.
        phase: The phase.
        monitor: Name of the monitored metric.

    Raises:
        UserError: The file is damaged, or belongs to another phase.
    """
    verify(path)
    values = read_json(inside(path.parent, path.name), dict, remedy=f"{remedy(path)}.")
    need(values, _ALWAYS, name=str(path), remedy=f"{remedy(path)}.")
    if unknown := set(values) - _FIELDS:
        raise UserError(f"{path}: damaged. Unknown field {min(unknown)!r}. {remedy(path)}.")
    try:
        check_rows(values["rows"], phase=phase.name)
    except ContentsError as error:
        raise UserError(f"{path}: damaged. {error}. {remedy(path)}.") from None
    result = from_plain(PhaseResult, values, name=str(path), remedy=f"{remedy(path)}.")
    if problem := _problem(result, monitor=monitor):
        raise UserError(f"{path}: damaged. {problem}. {remedy(path)}.")
    return result


def _problem(result: PhaseResult, *, monitor: str) -> str:
    """Return what the next phase could not begin from in a result that somebody else may have written; empty for nothing."""
    rows = result.rows or ()
    if not rows or len(rows) != result.epochs:
        return f"It has {len(rows)} rows for {result.epochs} epochs"
    if not 0 <= result.best_epoch < len(rows):
        return f"Its best_epoch is {result.best_epoch}, of {len(rows)} epochs"
    if result.restored not in ("best", "last", "start"):
        return f"Its restored is {result.restored!r}, and must be best, last or start"
    if missing := [name for name in (monitor, "val/loss") if any(name not in row.values for row in rows)]:
        return f"Its rows have no {missing[0]}"
    return ""
