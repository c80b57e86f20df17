"""The outcome of a phase: ``result.json`` in its folder, and without its rows an entry of ``phases`` in ``results.json``."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.activation_cache.policy import CachePolicy
from finetune.checksums import remedy, verify, write_checked_json
from finetune.errors import UserError
from finetune.safe_files import inside, need, read_json
from finetune.training.callbacks.checkpoint_contents import ContentsError, check_rows
from finetune.training.phases import Phase

Row = dict[str, Any]

_KINDS: dict[str, Any] = {
    "name": str,
    "train": list,
    "frozen": list,
    "epochs": int,
    "steps": int,
    "restored": str,
    "weights": str,
    "best_epoch": int,
    "best": dict,
    "rates": dict,
    "cached_after": str,
    "cached_view": str,
    "views": int,
    "rows": list,
    "seconds": (int, float),
}
_OPTIONAL: dict[str, Any] = {"probe": dict, "trials": list}


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What a phase did; :mod:`finetune.file_schema` documents each field.

    Args:
        name: Name of the phase.
        train: Stages that trained, from the input to the head.
        frozen: Stages that did not.
        epochs: Epochs that were run.
        steps: Optimizer steps that were run.
        restored: ``best`` or ``last``: the epoch whose weights were handed on.
        weights: ``raw`` or ``ema``: the weights that were validated and handed on.
        best_epoch: Best epoch, from 0.
        best: The monitored metric of that epoch, by name.
        rates: Peak learning rate of each stage that trained.
        rows: Rows of ``metrics.csv``, one an epoch.
        probe: For a head that was solved, the penalties tried; else None.
        trials: For heads trained side by side, each with its rate; else None.
        cached_after: Stage whose cached output was trained on; empty where the phase trained on images.
        cached_view: ``evaluation`` or ``training``: the view that was cached; empty without a cache.
        views: Training views of each image that the epochs drew from; 0 for a new one every epoch.
        seconds: Wall time in the process that finished the phase.
    """

    name: str
    train: tuple[str, ...]
    frozen: tuple[str, ...]
    epochs: int
    steps: int
    restored: str
    weights: str
    best_epoch: int
    best: Mapping[str, float]
    rates: Mapping[str, float]
    rows: Sequence[Row]
    probe: Mapping[str, Any] | None = None
    trials: Sequence[Mapping[str, Any]] | None = None
    cached_after: str = ""
    cached_view: str = ""
    views: int = 0
    seconds: float = 0.0

    def with_cost(self, policy: CachePolicy, seconds: float) -> "PhaseResult":
        """Return the same result with what its images cost.

        Args:
            policy: Cache that the phase trained on.
            seconds: Wall time.
        """
        return dataclasses.replace(
            self,
            cached_after=policy.cached_stage or "",
            cached_view=policy.cached_view,
            views=policy.views or 0,
            seconds=round(seconds, 3),
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as JSON values, without those that this kind of phase does not have."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {name: value for name, value in plain.items() if value is not None}

    def in_words(self) -> str:
        """Describe for the user how the phase ended."""
        (metric, value), epoch = next(iter(self.best.items())), self.best_epoch + 1
        if self.trials is not None:
            how = f"with lr {self.rates['head']:g} of {len(self.trials)} tried, at epoch {epoch}"
        elif self.probe is not None:
            end = "" if self.probe["converged"] else " (not converged)"
            tried = f"{self.probe['chosen']:.1e} of {len(self.probe['strengths'])} tried"
            how = f"with weight decay {tried}, {self.steps} iterations{end}"
        else:
            how = f"at epoch {epoch} of {self.epochs}"
        return f"{metric} {value:.4f} {how}, {self.seconds:.0f} s"


def write_phase_result(path: Path, result: PhaseResult) -> None:
    """Write the result of a phase with its checksum; from then on the phase counts as finished."""
    write_checked_json(path, result.to_plain())


def read_phase_result(path: Path, phase: Phase) -> PhaseResult:
    """Read the result of a finished phase.

    Raises:
        UserError: The file is damaged, or is of another phase.
    """
    verify(path)
    values: dict[str, Any] = read_json(inside(path.parent, path.name), dict, remedy=f"{remedy(path)}.")
    need(values, _KINDS, name=str(path), remedy=f"{remedy(path)}.")
    need(values, {name: kind for name, kind in _OPTIONAL.items() if name in values}, name=str(path))
    if unknown := set(values) - set(_KINDS) - set(_OPTIONAL):
        raise UserError(f"{path}: damaged. Unknown field {min(unknown)!r}. {remedy(path)}.")
    try:
        check_rows(values["rows"], phase=phase.name)
    except ContentsError as error:
        raise UserError(f"{path}: damaged. {error}. {remedy(path)}.") from None
    return PhaseResult(**values | {"train": tuple(values["train"]), "frozen": tuple(values["frozen"])})
