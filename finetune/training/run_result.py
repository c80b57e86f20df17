"""Gather the results of a run: what :class:`finetune.results.Results` holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.attribute_names import CALLS_OF_A_RUN, no_attribute
from finetune.data.datamodule import ImageDataModule
from finetune.html import html_table
from finetune.models.classifier import Classifier
from finetune.models.weights import state_hash
from finetune.results import (
    Calibration,
    DataFacts,
    DecisionThresholds,
    Growth,
    PhaseResult,
    Results,
    RunFacts,
    Seconds,
    SplitMetrics,
    UnknownImages,
)
from finetune.versions import versions


@dataclass(frozen=True, kw_only=True, repr=False)
class RunResult:
    """The files and the results of a finished run.

    Args:
        run_dir: Run folder.
        bundle: Folder of the trained model.
        results: Contents of ``results.json``.
    """

    run_dir: Path
    bundle: Path
    results: Results

    def __getattr__(self, name: str) -> Any:
        """Raise an error that has the call that does what was meant.

        Raises:
            AttributeError: Always; Python asks only for attributes that there are not.
        """
        raise no_attribute(self, name, CALLS_OF_A_RUN)

    def __repr__(self) -> str:
        """Return the run folder and the test metrics; ``results`` has the rest."""
        return f"RunResult(run_dir={str(self.run_dir)!r}, test: {self.results.test.in_words()})"

    def _repr_html_(self) -> str:
        test, val = self.results.test.scalars(), self.results.val.scalars()
        rows = [(name, value, val.get(name)) for name, value in test.items()]
        return html_table(["metric", "test", "val"], rows, caption=str(self.run_dir))


def run_results(
    *,
    classifier: Classifier,
    data: ImageDataModule,
    phases: Sequence[PhaseResult],
    metrics: Mapping[str, SplitMetrics],
    facts: RunFacts,
    seed: int,
    calibration: Calibration | None = None,
    unknown: UnknownImages | None = None,
    thresholds: DecisionThresholds | None = None,
    growth: Growth | None = None,
) -> Results:
    """Return the results of a run.

    Args:
        classifier: Network with its final weights.
        data: Data that the network was trained on.
        phases: Result of each phase.
        metrics: Metrics of ``val`` and ``test``.
        facts: Decisions made before training.
        seed: Seed of all randomness.
        calibration: Temperature of the network; None if it was not calibrated.
        unknown: How it tells unknown images; None if it does not.
        thresholds: Its decision thresholds; None for one half.
        growth: What it is worth on old and new classes; None if it did not grow from another.
    """
    index, decode_options = data.source.index, data.source.decode_options
    return Results(
        test=metrics["test"],
        val=metrics["val"],
        phases=tuple(replace(phase, rows=None) for phase in phases),
        seconds=Seconds(
            training=round(sum(phase.seconds for phase in phases), 3),
            phases={phase.name: phase.seconds for phase in phases},
        ),
        data=DataFacts(
            fingerprint=index.fingerprint(),
            classes=tuple(index.classes),
            counts={split: tuple(counts) for split, counts in index.counts().items()},
            skipped=len(index.skipped),
            max_pixels=decode_options.max_pixels,
            high_depth=decode_options.high_depth,
            integer_range=decode_options.integer_range,
            float_range=decode_options.float_range,
        ),
        versions=versions(),
        backbone=facts.backbone,
        schedule=facts.schedule,
        imbalance=facts.imbalance,
        precision=facts.precision,
        compiled=facts.compiled,
        seed=seed,
        weights_hash=state_hash(classifier),
        threads=torch.get_num_threads(),
        calibration=calibration,
        unknown=unknown,
        thresholds=thresholds,
        growth=growth,
    )
