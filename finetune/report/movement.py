"""How far the weights of each stage moved in each phase."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from finetune.checksums import verify
from finetune.errors import UserError
from finetune.models.classifier import Classifier


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
        names = ", ".join(str(path) for path in files)
        raise UserError(f"{names}: one of these is damaged, or not of this network. {error}") from error


def _between(classifier: Classifier, before: Path, after: Path) -> dict[str, float | None]:
    moved, length = (dict.fromkeys(classifier.stages, 0.0) for _ in range(2))
    with safe_open(before, "pt") as old, safe_open(after, "pt") as new:
        for name, _ in classifier.named_parameters():
            stage = classifier.stage_of(name)
            start = old.get_tensor(name).double()
            moved[stage] += float((new.get_tensor(name).double() - start).square().sum())
            length[stage] += float(start.square().sum())
    return {
        stage: float(np.sqrt(moved[stage] / length[stage])) if length[stage] else (None if moved[stage] else 0.0)
        for stage in moved
    }
