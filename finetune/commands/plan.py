"""``finetune plan``: show what a training would do, without training."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.hydra_job import ComposingArguments, run_composed
from finetune.config.schema import Config

if TYPE_CHECKING:
    from finetune.build import RunParts
    from finetune.training.plan import PlannedPhase
    from finetune.training.precision import Precision

ABOUT = """\
Show the phases: for each stage whether it trains, at which rate and with how many parameters; steps and images; whether it
trains on cached activations; and about how long it will take, from a calibration of a few seconds.
Takes the same key=value as finetune train. Nothing is trained and nothing is written."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune plan`` and return the exit status."""
    return run_composed("plan", ComposingArguments("plan", ABOUT).parse(argv)[1], task)


def task(config: Config) -> int:
    """Print the plan of one configuration."""
    from finetune.build import assemble
    from finetune.build.classifier import weights_origin
    from finetune.build.training import imbalance

    parts = assemble(config, print, trusted=True)

    from finetune.plain import to_plain
    from finetune.training.plan import duration, plan_table

    index = parts.source.index
    began = time.monotonic()
    plan, precision = planned(config, parts)
    calibration = f"calibrated on this machine in {time.monotonic() - began:.1f} s"
    images = ", ".join(f"{n} {split}" for split, n in index.images().items())
    print(f"data: {len(index.classes)} classes; images: {images}; loader processes: {parts.data.num_workers}")
    spec = parts.classifier.input_spec
    if config.backbone.weights != "none":
        print(f"origin of the weights: {weights_origin(config).in_words()}")
    print(f"input: {spec.channels} x {spec.size[0]} x {spec.size[1]}, adapt {parts.classifier.adapt}")
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in to_plain(imbalance(config)).items()))
    print(f"precision: {precision.name} ({precision.why})")
    seconds = sum(phase.time.seconds for phase in plan if phase.time is not None)
    print(f"time: about {duration(seconds)} for all phases, from an empty cache ({calibration})")
    print()
    print(plan_table(plan))
    return 0


def planned(config: Config, parts: "RunParts") -> "tuple[list[PlannedPhase], Precision]":
    """Return what each phase will do, with its time from a calibration of a few seconds, and the precision of the run."""
    from finetune.build.training import optimizer_factory, trainer_factory
    from finetune.runner import decide
    from finetune.training.forecast import forecast
    from finetune.training.plan import build_plan
    from finetune.training.quiet_lightning import QUIET_TRAINER, quiet_lightning

    parts.data.check_processes(1, [phase.batch_size for phase in parts.phases])
    decision = decide(config, parts)
    plan = build_plan(parts.classifier, decision.phases, parts.data, caches=decision.caches)
    with quiet_lightning():
        trainer = trainer_factory(config, Path(), precision=decision.precision.name, trusted=True)(**QUIET_TRAINER)
        times = forecast(
            classifier=parts.classifier,
            phases=decision.phases,
            caches=decision.caches,
            data=parts.data,
            trainer=trainer,
            make_optimizer=partial(optimizer_factory, trusted=True),
        )
    return [replace(phase, time=t) for phase, t in zip(plan, times, strict=True)], decision.precision
