"""Train a new run: check everything first, then create its folder and execute it; ``resume=auto`` goes on with one."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.build import RunParts, assemble
from finetune.build.paths import with_absolute_paths
from finetune.build.python_objects import PythonObjects
from finetune.build.run_dir import choose_run_dir, make_run_dir
from finetune.build.training import check_training, timeout_s
from finetune.config import to_plain, to_yaml
from finetune.config.schema import Config
from finetune.distributed import RUN_DIR_OF_RUN, is_rank_zero
from finetune.errors import UserError
from finetune.process_tuning import release_freed_blocks
from finetune.runners.execute import execute
from finetune.runners.heartbeats import beating
from finetune.terminal_log import show, show_log
from finetune.training.quiet_lightning import quiet_lightning

if TYPE_CHECKING:
    from finetune.activation_cache.policy import CachePolicy
    from finetune.phases import ResolvedPhase
    from finetune.training.heartbeats import Heartbeats
    from finetune.training.precision import Precision
    from finetune.training.run_result import RunResult


log = logging.getLogger(__name__)


def train(config: Config, *, tune_process: bool = False, objects: PythonObjects = PythonObjects()) -> "RunResult":
    """Train a new run; with ``resume=auto`` go on with the run that its folder holds.

    Each process of a run decides that for itself. They need not agree: rank 0 alone creates and changes the folder, and a
    process that finds the record of the run resumes it, whether rank 0 has just started it or resumes it as well.

    Args:
        config: Checked configuration.
        tune_process: Whether to change this process's garbage collection and allocator for speed; only the command line does.
        objects: Objects from Python that take the place of settings.
    """
    show_log()
    with beating(config, Path(config.run_dir or "runs"), trusted=True) as heartbeats:
        if config.resume == "auto" and (folder := _begun(config)) is not None:
            from finetune.runners.resume import resume

            return resume(folder, typed=config, tune_process=tune_process, objects=objects, heartbeats=heartbeats)
        return _train(config, tune_process=tune_process, objects=objects, heartbeats=heartbeats)


def _train(
    config: Config, *, tune_process: bool, objects: PythonObjects, heartbeats: "Heartbeats | None"
) -> "RunResult":
    """Train a new run."""
    from finetune.training.compiling import compiles

    compiles(config.compile)
    run_dir = choose_run_dir(config)
    recorded = with_absolute_paths(config)
    parts = assemble(
        config, show, worker_init=release_freed_blocks if tune_process else None, trusted=True, objects=objects
    )
    with quiet_lightning():
        check_training(
            config,
            run_dir,
            multi_label=parts.source.index.multi_label,
            user_metrics=list(objects.metrics),
            callbacks=objects.callbacks,
        )
    from finetune.run_folder import Decisions, create_run_folder
    from finetune.training.plan import build_plan, repeated_heads

    with make_run_dir(config, run_dir) as run_dir:
        if is_rank_zero():
            decision = decide(config, parts)
            for line in repeated_heads(decision.phases):
                log.warning("%s", line)
            create_run_folder(
                run_dir,
                config=to_plain(recorded),
                config_yaml=to_yaml(recorded),
                model=parts.classifier.describe(),
                index=parts.source.index,
                plan=build_plan(parts.classifier, decision.phases, parts.data, cache_policies=decision.cache_policies),
                decided=Decisions(
                    precision=decision.precision.name,
                    caches=tuple(policy.to_plain() for policy in decision.cache_policies),
                    objects=objects.names() or None,
                    beside=objects.beside(),
                ),
            )
            show(f"precision: {decision.precision.name} ({decision.precision.why})")
        show(f"run: {run_dir}")
        return execute(
            recorded, parts, run_dir, trusted=True, tune_process=tune_process, objects=objects, heartbeats=heartbeats
        )


def _begun(config: Config) -> Path | None:
    """Return the given folder if it holds a run; else None, and the folder is ready for a new one.

    Raises:
        UserError: No folder is given.
        RunError: Another process holds it for longer than ``trainer.timeout_s``.
    """
    from finetune.run_folder import RunFolder, remove_half_created

    if not config.run_dir:
        raise UserError(
            "resume=auto: needs the folder of the run, by which it is found again. Set run_dir=DIR, the same each time."
        )
    inherited = None if is_rank_zero() else os.environ.get(RUN_DIR_OF_RUN)
    run_dir = Path(inherited or config.run_dir)
    if is_rank_zero() and not os.path.lexists(RunFolder(run_dir).record):
        remove_half_created(run_dir, wait_s=timeout_s(config))
    return run_dir if os.path.lexists(RunFolder(run_dir).record) else None


@dataclass(frozen=True, kw_only=True)
class Computation:
    """How a run computes, decided from the network and the machine before anything is trained.

    Args:
        precision: Precision of the computation.
        cache_policies: Cache policy of each phase.
        phases: The phases, with their solvers decided.
    """

    precision: "Precision"
    cache_policies: "list[CachePolicy]"
    phases: "list[ResolvedPhase]"


def decide(config: Config, parts: RunParts) -> Computation:
    """Decide the precision, which phases train on a cache, and which of them solve their heads."""
    from finetune.activation_cache.policy import plan_caches, with_solvers
    from finetune.activation_cache.solver_memory import solver_memory
    from finetune.training.precision import choose_precision

    accelerator, devices = str(config.trainer.get("accelerator", "auto")), config.trainer.get("devices")
    precision = choose_precision(
        str(config.trainer.get("precision", "auto")), parts.classifier, accelerator=accelerator
    )
    policies = plan_caches(
        parts.classifier,
        parts.phases,
        parts.source.index,
        max_gb=config.cache.max_gb,
        weights_dtype=precision.weights_dtype,
        autocast=precision.autocast,
        # other forms, such as "auto", mean one process on a processor
        memory=solver_memory(accelerator, processes=devices if isinstance(devices, int) and devices > 1 else 1),
    )
    return Computation(precision=precision, cache_policies=policies, phases=with_solvers(parts.phases, policies))
