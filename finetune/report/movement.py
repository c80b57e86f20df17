"""How far the weights of each stage moved in each phase."""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from finetune.checksums import verify, write_checked_json
from finetune.errors import UserError
from finetune.file_errors import read_error
from finetune.models.classifier import Classifier
from finetune.run_folder import RunFolder
from finetune.safe_files import inside, read_json

# numbers whose change is summed at a time
_AT_ONCE = 2**20


def movements(classifier: Classifier, files: Sequence[Path]) -> list[dict[str, float | None]]:
    """Compute the relative Euclidean distance of each stage's parameters between consecutive weight files.

    ``|after - before| / |before|`` over all parameters of a stage together; buffers (running statistics) are excluded.
    A frozen stage has exactly 0; a stage that was all zeros before has None.

    Args:
        classifier: Model that assigns each parameter to a stage.
        files: Weights before the first phase, between the phases, and after the last.

    Returns:
        For each phase one value per stage, followed by an entry from the first file to the last.

    Raises:
        UserError: A file is damaged, or belongs to another network.
    """
    pairs = [*itertools.pairwise(files), (files[0], files[-1])]
    for path in files:
        verify(path)
    try:
        return [_between(classifier, before, after) for before, after in pairs]
    except (SafetensorError, RuntimeError, OSError) as error:
        if (failed := read_error(error, files[0])) is not None:
            raise failed from error
        names = ", ".join(str(path) for path in files)
        raise UserError(f"{names}: one of these is damaged, or not of this network. {error}") from error


def keep_movements(classifier: Classifier, folder: RunFolder) -> None:
    """Write ``movement.json`` from the weights between phases, so that these may be deleted; keep it where they are gone.

    Raises:
        UserError: A file is damaged, or belongs to another network.
    """
    starts = [path / "start.safetensors" for path in sorted((folder.path / "phases").glob("*"), key=_number_of)]
    files = [*starts, folder.final_weights]
    if all(path.is_file() for path in files):
        write_checked_json(folder.movement, movements(classifier, files))


def kept_movements(folder: RunFolder, stages: Sequence[str], phases: int) -> list[dict[str, float | None]] | None:
    """Return what :func:`keep_movements` wrote; None if there is none.

    Args:
        folder: Run folder.
        stages: Stages of the network.
        phases: Number of phases.

    Raises:
        UserError: The file is damaged.
    """
    path = folder.movement
    if not os.path.lexists(path):
        return None
    verify(path)
    stored = read_json(inside(path.parent, path.name), list)
    whole = len(stored) == phases + 1 and all(
        isinstance(entry, dict)
        and set(entry) == set(stages)
        and all(value is None or isinstance(value, int | float) for value in entry.values())
        for entry in stored
    )
    if not whole:
        raise UserError(f"{path}: damaged. It has not a number for each stage and phase. Delete it.")
    return [{stage: None if value is None else float(value) for stage, value in entry.items()} for entry in stored]


def _number_of(phase: Path) -> int:
    number = phase.name.partition("-")[0]
    return int(number) if number.isdigit() else -1


def _between(classifier: Classifier, before: Path, after: Path) -> dict[str, float | None]:
    moved, length = (dict.fromkeys(classifier.stages, 0.0) for _ in range(2))
    with safe_open(before, "pt") as old, safe_open(after, "pt") as new:
        for name, _ in classifier.named_parameters():
            stage = classifier.stage_of(name)
            start, end = old.get_tensor(name), new.get_tensor(name)
            if start.shape != end.shape:
                raise RuntimeError(
                    f"{name} is {tuple(start.shape)} in {before.name}, {tuple(end.shape)} in {after.name}."
                )
            # part by part: a copy in double precision is twice as large as the weights
            for one, other in zip(start.flatten().split(_AT_ONCE), end.flatten().split(_AT_ONCE), strict=True):
                moved[stage] += float((other.double() - one.double()).square().sum())
                length[stage] += float(one.double().square().sum())
            # a number that is not finite, in either file, makes the sum so
            if not math.isfinite(moved[stage]):
                path = after if start.isfinite().all() else before
                raise UserError(f"{path}: damaged. {name} holds numbers that are not finite.")
    return {
        stage: float(np.sqrt(moved[stage] / length[stage])) if length[stage] else (None if moved[stage] else 0.0)
        for stage in moved
    }
