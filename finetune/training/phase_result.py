"""Read and write ``result.json`` in the folder of a phase; its presence means that the phase is finished."""

from pathlib import Path

from finetune.checksums import remedy, verify, write_checked_json
from finetune.errors import UserError
from finetune.plain import from_plain, to_plain
from finetune.results import PhaseResult
from finetune.safe_files import inside, need, read_json
from finetune.training.callbacks.checkpoint_contents import ContentsError, check_rows
from finetune.training.phases import ResolvedPhase

# fields that every finished phase has, but that an entry of results.json from another version may lack
_ALWAYS: dict[str, type | tuple[type, ...]] = {
    "rows": list,
    "cached_after": str,
    "cached_view": str,
    "views": int,
    "seconds": (int, float),
}
_FIELDS = set(PhaseResult.__dataclass_fields__)


def write_phase_result(path: Path, result: PhaseResult) -> None:
    """Write the result of a phase and its checksum; from then on the phase counts as finished."""
    write_checked_json(path, to_plain(result))


def read_phase_result(path: Path, phase: ResolvedPhase) -> PhaseResult:
    """Read the result of a finished phase.

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
    return from_plain(PhaseResult, values, name=str(path), remedy=f"{remedy(path)}.")
