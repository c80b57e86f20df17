"""``results.json`` of a run; :mod:`finetune.file_schema` documents its fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.data.datamodule import ImageDataModule
from finetune.models.classifier import Classifier
from finetune.models.weights import state_hash
from finetune.training.phase_result import PhaseResult
from finetune.versions import versions


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run left behind."""

    run_dir: Path
    bundle: Path
    results: dict[str, Any]


def run_results(
    *,
    classifier: Classifier,
    data: ImageDataModule,
    phases: Sequence[PhaseResult],
    evaluated: Mapping[str, Any],
    facts: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """What a run amounts to, in plain JSON values.

    Args:
        classifier: With its final weights.
        data: What it was trained on.
        phases: Result of each phase.
        evaluated: Metrics of ``val`` and ``test``.
        facts: Where the weights came from and what was decided.
        seed: Of all randomness.
    """
    index = data.source.index
    return {
        "test": evaluated["test"],
        "val": evaluated["val"],
        "phases": [{key: value for key, value in phase.to_plain().items() if key != "rows"} for phase in phases],
        "seconds": {
            "training": round(sum(phase.seconds for phase in phases), 3),
            "phases": {phase.name: phase.seconds for phase in phases},
        },
        "data": {
            "fingerprint": index.fingerprint(),
            "classes": list(index.classes),
            "counts": index.counts(),
            "skipped": len(index.skipped),
            **data.source.decode.reading(),
        },
        "versions": versions(),
        **facts,
        "seed": seed,
        "weights_hash": state_hash(classifier),
        "threads": torch.get_num_threads(),
    }
