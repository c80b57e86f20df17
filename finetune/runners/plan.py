"""Plan a run: what each of its phases would do, and about how long it would take."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config.schema import Config

if TYPE_CHECKING:
    from finetune.build import RunParts
    from finetune.training.plan import PlannedPhase
    from finetune.training.precision import Precision


def plan_run(config: Config, parts: "RunParts") -> "tuple[list[PlannedPhase], Precision]":
    """Return what each phase will do, with its time from a calibration of a few seconds, and the precision of the run."""
    from finetune.build.training import optimizer_factory, trainer_factory
    from finetune.runners.train import decide
    from finetune.training.forecast import forecast
    from finetune.training.plan import build_plan
    from finetune.training.quiet_lightning import QUIET_TRAINER, quiet_lightning

    parts.data.check_processes(1, [phase.batch_size for phase in parts.phases])
    decision = decide(config, parts)
    plan = build_plan(parts.classifier, decision.phases, parts.data, cache_policies=decision.cache_policies)
    with quiet_lightning():
        trainer = trainer_factory(config, Path(), precision=decision.precision.name, trusted=True)(**QUIET_TRAINER)
        times = forecast(
            classifier=parts.classifier,
            phases=decision.phases,
            cache_policies=decision.cache_policies,
            data=parts.data,
            trainer=trainer,
            make_optimizer=partial(optimizer_factory, trusted=True),
        )
    return [replace(phase, time=t) for phase, t in zip(plan, times, strict=True)], decision.precision
