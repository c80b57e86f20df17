"""Trains tiny runs for tests, in this process."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetune.config import compose
from finetune.runners.train import train
from finetune.training.run_result import RunResult

# fields of other runs: cells stand in place of a matrix of over a thousand classes; images here have 8 bits, weights no origin,
# and too few are wrong for a temperature, and too few in all for a score of unknown images
_RARE = (
    "*",
    "confusion_cells",
    "_range",
    "licence",
    "revision",
    "calibration.interval",
    "unknown.threshold",
    "unknown.sha256",
    # only with thresholds=f1
    "thresholds",
    # only of finetune grow
    "growth",
)


def fields_of_a_tiny_run(fields: Iterable[str]) -> set[str]:
    """Return the documented fields that a run of the tests writes, too."""
    return {name for name in fields if not any(part in name for part in _RARE)}


def train_tiny(words: list[str], run_dir: Path) -> RunResult:
    """A run from overrides."""
    return train(compose([*words, f"run_dir={run_dir}"]))


def stage_of(name: str) -> str:
    """Stage of a state-dict name of a classifier around a ResNet, told from the name alone."""
    name = name.removeprefix("backbone.net.")
    if name.startswith("head."):
        return "head"
    return name.split(".")[0] if name.startswith("layer") else "stem"


def moved_stages(before: Path, after: Path) -> set[str]:
    """Stages of which a tensor differs in a bit between two weight files; the names in the files must be the same."""
    old, new = load_file(before), load_file(after)
    assert set(old) == set(new)
    assert len(old) > 20
    return {stage_of(name) for name in old if old[name].numpy().tobytes() != new[name].numpy().tobytes()}


def _digest(value: Any) -> str:
    """Digest of nested containers, tensors by their bits."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return hashlib.sha256(repr([(str(k), _digest(v)) for k, v in value.items()]).encode()).hexdigest()
    if isinstance(value, list | tuple):
        return hashlib.sha256(repr([_digest(v) for v in value]).encode()).hexdigest()
    return repr(value)


def outcome(run_dir: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on how it got there, as digests and plain values."""
    results = json.loads((run_dir / "results.json").read_text())
    digests = {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("final.safetensors", "model/*.safetensors", "predictions.csv", "metrics.csv")
        for path in sorted(run_dir.glob(pattern))
    }
    assert len(digests) >= 5
    # equal objects may be pickled to other bytes, for instance where one string was read from a file and is no longer shared
    checkpoints = {
        str(path.relative_to(run_dir)): _digest(torch.load(path, weights_only=True))
        for path in sorted(run_dir.glob("phases/*/*.ckpt"))
    }
    # a head that is solved, or tried at several rates, leaves none
    trained = [phase for phase in results["phases"] if not {"probe", "trials"} & set(phase)]
    assert bool(checkpoints) == bool(trained)
    return {
        "files": digests,
        "checkpoints": checkpoints,
        "test": results["test"],
        "val": results["val"],
        "phases": [{k: v for k, v in phase.items() if k != "seconds"} for phase in results["phases"]],
    }
