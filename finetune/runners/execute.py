"""Execute a run whose folder exists: train its remaining phases, test it, and write the bundle and the report."""

import copy
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.atomic_files import write_text
from finetune.build import RunParts
from finetune.build.classifier import network_name, weights_origin
from finetune.build.loggers import build_loggers
from finetune.build.python_objects import PythonObjects, loss_with_objects, with_objects_named
from finetune.build.training import imbalance, loss_of, optimizer_factory, timeout_s, trainer_factory
from finetune.config import to_plain
from finetune.config.schema import Config
from finetune.config.trust import instantiate
from finetune.counted import counted
from finetune.distributed import RUN_DIR_OF_RUN, is_rank_zero
from finetune.errors import FileError, RunError, UserError, first_line
from finetune.file_errors import file_error
from finetune.process_tuning import collect_garbage_as_usual, free_memory, release_freed_blocks, retain_freed_blocks
from finetune.resume_command import resume_command
from finetune.run_names import RECORD
from finetune.runners.growth import measure_growth
from finetune.runners.report import report_finished
from finetune.terminal import escape
from finetune.terminal_log import show
from finetune.training.quiet_lightning import quiet_lightning

if TYPE_CHECKING:
    from finetune.data.index import Index
    from finetune.models.classifier import Classifier
    from finetune.plain import Json
    from finetune.run_folder import RunFolder
    from finetune.training.heartbeats import Heartbeats
    from finetune.training.logger_stores import StoredFiles
    from finetune.training.run_context import Factories, RunContext, RunSettings
    from finetune.training.run_loggers import RunLoggers
    from finetune.training.run_result import RunResult


def execute(
    config: Config,
    parts: RunParts,
    run_dir: Path,
    *,
    trusted: bool,
    tune_process: bool = False,
    objects: PythonObjects = PythonObjects(),
    heartbeats: "Heartbeats | None" = None,
) -> "RunResult":
    """Finish a run, for ``train`` and ``resume``: train the remaining phases, test, write the bundle, results and report.

    Args:
        config: Configuration of the run.
        parts: Objects built from the configuration.
        run_dir: Run folder.
        trusted: Whether the user typed the configuration; one read from a run folder may name listed classes only.
        tune_process: Whether to change this process's garbage collection and allocator for speed.
        objects: Objects from Python that take the place of settings.
        heartbeats: Heartbeats between this process and those of other machines; None where there are none.
    """
    from finetune.report.model_card import model_card
    from finetune.run_folder import RunFolder
    from finetune.training.logger_stores import flat
    from finetune.training.run import Run

    folder = RunFolder(run_dir)
    context, loggers = _context(config, parts, folder, trusted=trusted, objects=objects, heartbeats=heartbeats)
    if tune_process:
        _tune_for_training()
    with loggers.recording(flat({key: value for key, value in to_plain(config).items() if key != "logger"})):
        with quiet_lightning(), saving_traceback(folder), passing_run_dir(run_dir):
            run = Run(
                context=context,
                card=model_card,
                growth=lambda classifier, evaluated, start: measure_growth(
                    config, classifier, evaluated, source=parts.source, start=start
                ),
                free_memory=free_memory if tune_process else gc.collect,
            )
            result = run.execute()
        _show_results(result, config, parts.source.index)
        # before the report, which reads them
        kept = is_rank_zero() and config.keep != "all" and _keep_movements(parts.classifier, folder)
        if config.report and is_rank_zero():
            if tune_process:
                _tune_for_report()
            _report(parts, run_dir, trusted=trusted, objects=objects)
        loggers.finish(
            result.results.test,
            step=sum(phase.steps for phase in result.results.phases),
            files=_stored_files(folder),
        )
    if is_rank_zero():
        if kept:
            _delete_spare_files(folder)
        _show_next_commands(parts.classifier, run_dir, reported=config.report)
    return result


def _context(
    config: Config,
    parts: RunParts,
    folder: "RunFolder",
    *,
    trusted: bool,
    objects: PythonObjects,
    heartbeats: "Heartbeats | None",
) -> "tuple[RunContext, RunLoggers]":
    """Return what the phases of the run share, as its record and its configuration decide, and its loggers.

    Raises:
        UserError: The record is damaged, or an object that the configuration names cannot be built.
    """
    from finetune.activation_cache.policy import policies_from_plain, with_solvers
    from finetune.run_folder import wait_for_run_record
    from finetune.training.run_context import RunContext
    from finetune.training.user_callbacks import UserCallbacks

    if heartbeats is not None and is_rank_zero():
        heartbeats.hold()
    elif heartbeats is not None:
        heartbeats.wait_for_holder()
    first = "process 0 of the run" if heartbeats is None else heartbeats.name(0)
    decided = wait_for_run_record(folder.path, patience_s=timeout_s(config), first=first).decided
    try:
        policies = policies_from_plain(decided.caches, parts.phases)
    except ValueError as error:
        raise UserError(f"{folder.path / RECORD}: damaged. {error}. Start the run again.") from None
    settings = _settings(with_objects_named(config, objects), parts.classifier, precision=str(decided.precision))
    make = _factories(config, parts, folder.path, precision=decided.precision, trusted=trusted, objects=objects)
    loggers = build_loggers(config, folder.path, trusted=trusted, objects=objects.loggers)
    callbacks = [instantiate(node, trusted=trusted, run_dir=folder.path) for node in config.callbacks.values()]
    context = RunContext(
        classifier=parts.classifier,
        data=parts.data,
        schedule=with_solvers(parts.phases, policies),
        cache_policies=policies,
        folder=folder,
        settings=settings,
        make=make,
        loggers=loggers.all,
        callbacks=UserCallbacks([*callbacks, *objects.callbacks]),
        heartbeats=heartbeats,
    )
    return context, loggers


def _settings(named: Config, classifier: "Classifier", *, precision: str) -> "RunSettings":
    """Return the values that every phase reads, and the facts about the run that its results report.

    Args:
        named: Configuration that names the classes of objects from Python.
        classifier: The network.
        precision: Precision of the computation.
    """
    from finetune.results import BackboneOrigin, RunFacts
    from finetune.training.compiling import compiles
    from finetune.training.run_context import RunSettings

    compiled, origin = compiles(named.compile), weights_origin(named)
    return RunSettings(
        seed=named.seed,
        monitor=named.monitor,
        checkpoint_every=named.checkpoint.every_n_steps,
        cache_limit_bytes=int(named.cache.max_gb * 1e9),
        compiled=compiled,
        calibrate=named.calibrate,
        fits_thresholds=classifier.multi_label and named.thresholds == "f1",
        accept_known=named.accept_known,
        facts=RunFacts(
            backbone=BackboneOrigin(
                source=classifier.backbone.source,
                name=network_name(named),
                weights=named.backbone.weights,
                place=origin.place,
                licence=origin.licence,
                revision=origin.revision,
            ),
            schedule=named.schedule.name,
            imbalance=imbalance(named),
            precision=precision,
            compiled=compiled,
        ),
    )


def _factories(
    config: Config, parts: RunParts, run_dir: Path, *, precision: "Json", trusted: bool, objects: PythonObjects
) -> "Factories":
    """Return the functions that make each phase's Trainer, optimizer and loss, and the user's metrics."""
    from finetune.training.run_context import Factories

    index = parts.source.index
    make_loss = (
        loss_of(config, parts.source, trusted=trusted)
        if objects.loss is None
        else loss_with_objects(objects.loss, num_classes=len(index.classes), multi_label=index.multi_label)
    )
    metrics = {name: instantiate(node, trusted=trusted) for name, node in config.metrics.items() if "_target_" in node}
    return Factories(
        trainer=trainer_factory(config, run_dir, precision=precision, trusted=trusted),
        optimizer_factory=partial(optimizer_factory, trusted=trusted),
        loss=make_loss,
        metrics={**metrics, **objects.metrics},
    )


def _tune_for_training() -> None:
    """Collect garbage as usual again after the imports, and retain freed blocks for the next batch."""
    import torch

    collect_garbage_as_usual()
    if not torch.cuda.is_available():
        retain_freed_blocks()


def _tune_for_report() -> None:
    """Return memory to the system: the report uses its own only once, so freed blocks need not be retained."""
    release_freed_blocks()
    free_memory()


def _show_results(result: "RunResult", config: Config, index: "Index") -> None:
    """Show the table of phases, the test metrics, what was fitted on validation, a phase better than the last, and the bundle."""
    from finetune.report.better_phase import better_phase, wrapped_sentences
    from finetune.report.result_table import result_table

    results = result.results
    show(f"\n{result_table(results)}\n")
    show(f"test: {results.test.in_words()} on {counted(len(index.rows('test')), 'image')}")
    if results.growth is not None:
        show(f"growth: {results.growth.in_words()}")
    if results.calibration is not None and (calibration := results.calibration.in_words()):
        show(f"calibration: {calibration}")
    if results.thresholds is not None:
        show(f"decisions: {results.thresholds.in_words()}")
    configured = to_plain(config)["schedule"]["phases"]
    if better := better_phase(results.phases, configured, images=len(index.rows("val"))):
        show(wrapped_sentences(better))
    show(f"bundle: {result.bundle}")


def _report(parts: RunParts, run_dir: Path, *, trusted: bool, objects: PythonObjects) -> None:
    """Write the report from what the run still holds in memory."""
    modules = {"head": objects.head, "backbone": None if objects.backbone is None else objects.backbone.net}
    report_finished(
        run_dir,
        parts.source,
        trust=trusted,
        views={text: parts.data.view(text) for text in parts.data.augment_lists},
        given={part: copy.deepcopy(module) for part, module in modules.items() if module is not None},
    )


def _stored_files(folder: "RunFolder") -> "StoredFiles":
    """Return the files of a finished run that its loggers keep."""
    from finetune.training.logger_stores import StoredFiles

    files = (folder.results, folder.report, folder.config, folder.plan, folder.predictions, folder.metrics)
    return StoredFiles(bundle=folder.bundle, others=[file for file in files if file.is_file()])


def _keep_movements(classifier: "Classifier", folder: "RunFolder") -> bool:
    """Write how far the weights moved in each phase to ``movement.json``; return whether the weights may be deleted.

    An error here is printed and leaves the run intact.
    """
    from finetune.report.movement import keep_movements

    try:
        keep_movements(classifier, folder)
    except (OSError, UserError, RunError) as error:
        _say_kept(error)
        return False
    return True


def _delete_spare_files(folder: "RunFolder") -> None:
    """Delete checkpoints and weights between phases; an error here is printed and leaves the run intact."""
    try:
        folder.delete_spare_files()
    except OSError as error:
        _say_kept(error)


def _say_kept(error: Exception) -> None:
    show(f"keep=results: checkpoints stay on the disk. {first_line(error)} The run itself is complete.")


def _show_next_commands(classifier: "Classifier", run_dir: Path, *, reported: bool) -> None:
    """Show what can be done with the trained model, and how to write the report where the run has none."""
    from finetune.models.user_modules import modules_text, user_classes
    from finetune.python_names import called_from_python
    from finetune.report.usage import commands

    model = classifier.describe()
    lines = commands(
        str(run_dir),
        trust=bool(user_classes(model)),
        modules=modules_text(model),
        python=called_from_python(),
        reported=reported,
    )
    show("\n".join(["next:", *(f"  {line}" for what, command in lines for line in (f"# {what}", command))]))


@contextmanager
def passing_run_dir(run_dir: Path) -> Iterator[None]:
    """Pass the run folder to processes started inside the block, and to no others."""
    os.environ[RUN_DIR_OF_RUN] = str(run_dir)
    try:
        yield
    finally:
        os.environ.pop(RUN_DIR_OF_RUN, None)


@contextmanager
def saving_traceback(folder: "RunFolder") -> Iterator[None]:
    """Save the traceback of an unexpected error in the run folder, and explain how to continue.

    Raises:
        FileError: As inside, with the command that goes on.
        RunError: Replaces any other unexpected error.
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
