"""Train a run: start it, or continue it, through its phases; then test it, and write the bundle and the report."""

import copy
import gc
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.atomic_files import write_text
from finetune.build import RunParts, assemble
from finetune.build.classifier import network_name
from finetune.build.loggers import build_loggers
from finetune.build.paths import with_absolute_paths
from finetune.build.python_objects import PythonObjects
from finetune.build.run_dir import choose_run_dir, make_run_dir
from finetune.build.training import check_training, imbalance, loss_of, optimizer_factory, trainer_factory
from finetune.config import to_plain, to_yaml
from finetune.config.schema import Config
from finetune.config.trust import instantiate
from finetune.counted import counted
from finetune.distributed import RUN_DIR_OF_RUN, is_rank_zero
from finetune.errors import FileError, RunError, UserError, first_line
from finetune.file_errors import file_error
from finetune.process_tuning import collect_garbage_as_usual, free_memory, release_freed_blocks, retain_freed_blocks
from finetune.resume_command import resume_command
from finetune.terminal import escape
from finetune.terminal_log import show, show_log
from finetune.training.quiet_lightning import quiet_lightning

if TYPE_CHECKING:
    from torch import nn

    from finetune.activation_cache.policy import CachePolicy
    from finetune.data.image_source import Source
    from finetune.data.transforms import View
    from finetune.models.classifier import Classifier
    from finetune.run_folder import RunFolder
    from finetune.training.logger_stores import StoredFiles
    from finetune.training.phases import ResolvedPhase
    from finetune.training.precision import Precision
    from finetune.training.results import RunResult


log = logging.getLogger(__name__)


def train(config: Config, *, tune_process: bool = False, objects: PythonObjects = PythonObjects()) -> "RunResult":
    """Train a new run.

    Args:
        config: Checked configuration.
        tune_process: Whether to change this process's garbage collection and allocator for speed; only the command line does.
        objects: Objects from Python that take the place of settings.
    """
    from finetune.training.compiling import compiles

    show_log()
    compiles(config.compile)
    run_dir = choose_run_dir(config)
    recorded = with_absolute_paths(config)
    parts = assemble(
        config, show, worker_init=release_freed_blocks if tune_process else None, trusted=True, objects=objects
    )
    with quiet_lightning():
        check_training(config, run_dir, multi_label=parts.source.index.multi_label, own_metrics=list(objects.metrics))
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
                plan=build_plan(parts.classifier, decision.phases, parts.data, caches=decision.caches),
                decided=Decisions(
                    precision=decision.precision.name,
                    caches=tuple(policy.to_plain() for policy in decision.caches),
                    objects=objects.names() or None,
                ),
            )
            show(f"precision: {decision.precision.name} ({decision.precision.why})")
        show(f"run: {run_dir}")
        return execute(recorded, parts, run_dir, trusted=True, tune_process=tune_process, objects=objects)


@dataclass(frozen=True, kw_only=True)
class Computation:
    """How a run computes, decided from the network and the machine before anything is trained.

    Args:
        precision: Precision of the computation.
        caches: Cache policy of each phase.
        phases: The phases, with their solvers decided.
    """

    precision: "Precision"
    caches: "list[CachePolicy]"
    phases: "list[ResolvedPhase]"


def decide(config: Config, parts: RunParts) -> Computation:
    """Decide the precision, which phases train on a cache, and which of them solve their heads."""
    from finetune.activation_cache.policy import plan_caches, with_solvers
    from finetune.training.precision import choose_precision

    precision = choose_precision(
        str(config.trainer.get("precision", "auto")),
        parts.classifier,
        accelerator=str(config.trainer.get("accelerator", "auto")),
    )
    caches = plan_caches(
        parts.classifier, parts.phases, parts.source.index, max_gb=config.cache.max_gb, item_bytes=precision.item_bytes
    )
    return Computation(precision=precision, caches=caches, phases=with_solvers(parts.phases, caches))


def execute(
    config: Config,
    parts: RunParts,
    run_dir: Path,
    *,
    trusted: bool,
    tune_process: bool = False,
    objects: PythonObjects = PythonObjects(),
) -> "RunResult":
    """Finish a run, for ``train`` and ``resume``: train the remaining phases, test, write the bundle, results and report.

    Args:
        config: Configuration of the run.
        parts: Objects built from the configuration.
        run_dir: Run folder.
        trusted: Whether the user typed the configuration; one read from a run folder may name listed classes only.
        tune_process: Whether to change this process's garbage collection and allocator for speed.
        objects: Objects from Python that take the place of settings.
    """
    import torch

    from finetune.activation_cache.policy import policies_from_plain, with_solvers
    from finetune.build.classifier import weights_origin
    from finetune.build.python_objects import loss_with_objects, with_objects_named
    from finetune.models.own_modules import modules_text, own_classes
    from finetune.report.better_phase import better_phase
    from finetune.report.model_card import model_card
    from finetune.report.result_table import result_table
    from finetune.report.usage import commands
    from finetune.results import BackboneOrigin, RunFacts
    from finetune.run_folder import RunFolder, wait_for_run_record
    from finetune.run_names import RECORD
    from finetune.training.compiling import compiles
    from finetune.training.logger_stores import flat
    from finetune.training.run import Run
    from finetune.training.run_context import Factories, RunContext, RunSettings

    folder, decided = RunFolder(run_dir), wait_for_run_record(run_dir).decided
    try:
        caches = policies_from_plain(decided.caches, parts.phases)
    except ValueError as error:
        raise UserError(f"{run_dir / RECORD}: damaged. {error}. Start the run again.") from None
    compiled = compiles(config.compile)
    named, index = with_objects_named(config, objects), parts.source.index
    origin = weights_origin(named)
    make_loss = (
        loss_of(config, parts.source, trusted=trusted)
        if objects.loss is None
        else loss_with_objects(objects.loss, num_classes=len(index.classes), multi_label=index.multi_label)
    )
    loggers = build_loggers(config, run_dir, trusted=trusted, objects=objects.loggers)
    callbacks = [instantiate(node, trusted=trusted, run_dir=run_dir) for node in config.callbacks.values()]
    metrics = {
        name: instantiate(node, trusted=trusted) for name, node in config.metrics.items() if "_target_" in node
    } | dict(objects.metrics)
    if tune_process:
        collect_garbage_as_usual()
        if not torch.cuda.is_available():
            retain_freed_blocks()
    with loggers.recording(flat({key: value for key, value in to_plain(config).items() if key != "logger"})):
        with quiet_lightning(), failures_logged(folder), handed_down(run_dir):
            context = RunContext(
                classifier=parts.classifier,
                data=parts.data,
                schedule=with_solvers(parts.phases, caches),
                caches=caches,
                folder=folder,
                settings=RunSettings(
                    seed=config.seed,
                    monitor=config.monitor,
                    checkpoint_every=config.checkpoint.every_n_steps,
                    cache_limit_bytes=int(config.cache.max_gb * 1e9),
                    compiled=compiled,
                    facts=RunFacts(
                        backbone=BackboneOrigin(
                            source=parts.classifier.backbone.source,
                            name=network_name(named),
                            weights=named.backbone.weights,
                            place=origin.place,
                            licence=origin.licence,
                            revision=origin.revision,
                        ),
                        schedule=config.schedule.name,
                        imbalance=imbalance(named),
                        precision=str(decided.precision),
                        compiled=compiled,
                    ),
                ),
                make=Factories(
                    trainer=trainer_factory(config, run_dir, precision=decided.precision, trusted=trusted),
                    optimizer=partial(optimizer_factory, trusted=trusted),
                    loss=make_loss,
                    metrics=metrics,
                ),
                loggers=loggers.all,
                callbacks=[*callbacks, *objects.callbacks],
            )
            result = Run(
                context=context, card=model_card, free_memory=free_memory if tune_process else gc.collect
            ).execute()
        show(f"\n{result_table(result.results)}\n")
        show(f"test: {result.results.test.in_words()} on {counted(len(parts.source.index.rows('test')), 'image')}")
        configured, images = to_plain(config)["schedule"]["phases"], len(parts.source.index.rows("val"))
        if better := better_phase(result.results.phases, configured, images=images):
            show(better)
        show(f"bundle: {result.bundle}")
        if config.report and is_rank_zero():
            if tune_process:
                # the report uses its memory only once, so freed blocks need not be retained
                release_freed_blocks()
                free_memory()
            views = {text: parts.data.view(text) for text in parts.data.augment_lists}
            modules = {"head": objects.head, "backbone": None if objects.backbone is None else objects.backbone.net}
            given = {part: copy.deepcopy(module) for part, module in modules.items() if module is not None}
            report(run_dir, parts.source, trust=trusted, views=views, given=given)
        loggers.finish(
            result.results.test,
            step=sum(phase.steps for phase in result.results.phases),
            files=stored_files(folder),
        )
    if is_rank_zero():
        if config.keep != "all":
            keep_results_only(parts.classifier, folder)
        model = parts.classifier.describe()
        lines = commands(
            str(run_dir),
            multi_label=parts.source.index.multi_label,
            trust=bool(own_classes(model)),
            modules=modules_text(model),
        )
        show("\n".join(["next:", *(f"  {line}  # {what}" for what, line in lines)]))
    return result


def stored_files(folder: "RunFolder") -> "StoredFiles":
    """Return the files of a finished run that its loggers keep."""
    from finetune.training.logger_stores import StoredFiles

    files = (folder.results, folder.report, folder.config, folder.plan, folder.predictions, folder.metrics)
    return StoredFiles(bundle=folder.bundle, others=[file for file in files if file.is_file()])


def keep_results_only(classifier: "Classifier", folder: "RunFolder") -> None:
    """Delete checkpoints and weights between phases of a finished run, and keep how far these moved in ``movement.json``.

    An error here is printed and leaves the run intact.
    """
    from finetune.report.movement import keep_movements

    try:
        keep_movements(classifier, folder)
        folder.delete_spare_files()
    except (OSError, UserError, RunError) as error:
        show(f"keep=results: checkpoints stay on the disk. {first_line(error)} The run itself is complete.")


def report(
    run_dir: Path,
    source: "Source | None",
    *,
    trust: bool,
    views: "Mapping[str, View] | None" = None,
    given: "Mapping[str, nn.Module] | None" = None,
) -> None:
    """Write the page of a finished run; an error here is printed and leaves the run intact.

    Args:
        run_dir: Run folder.
        source: Images of the run; None leaves pictures out.
        trust: Whether to build classes that the run names.
        views: Training views that the run made itself, by name.
        given: User-supplied modules given as objects, by part.
    """
    from finetune.commands.own_modules import modules_of
    from finetune.report.run_page import write_report

    given = given or {}
    try:
        modules = {**modules_of(run_dir, trust=trust, given=given), **given}
        show(f"report: {write_report(run_dir, source, modules=modules, views=views)}")
    except Exception as error:
        show(
            f"report: could not be written ({first_line(error, with_type=True)}). The run itself is complete. "
            f"Try again: finetune report {shlex.quote(str(run_dir))}"
        )


@contextmanager
def handed_down(run_dir: Path) -> Iterator[None]:
    """Pass the run folder to processes started inside the block, and to no others."""
    os.environ[RUN_DIR_OF_RUN] = str(run_dir)
    try:
        yield
    finally:
        os.environ.pop(RUN_DIR_OF_RUN, None)


@contextmanager
def failures_logged(folder: "RunFolder") -> Iterator[None]:
    """Save the traceback of an unexpected error in the run folder, and explain how to continue.

    Raises:
        RunError: Replaces the unexpected error.
    """
    try:
        yield
    except FileError as error:
        raise _failed(error, folder) from error
    except (UserError, RunError):
        raise
    except Exception as error:
        if (failed := file_error(error, None, "could not be read or written")) is not None:
            raise _failed(failed, folder) from error
        import traceback

        if is_rank_zero():
            # if the log cannot be written, the message can still be shown
            with suppress(OSError):
                trace = escape("".join(traceback.format_exception(error)))
                write_text(folder.error_log, trace)
        raise RunError(
            f"{first_line(error, with_type=True)}\nThe run failed; the traceback is in {folder.error_log}. "
            f"Fix the cause, then continue with: {resume_command(folder.path)}"
        ) from error


def _failed(error: FileError, folder: "RunFolder") -> FileError:
    return FileError(f"{error}\nThen continue with: {resume_command(folder.path)}")
