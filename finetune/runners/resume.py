"""Resume a stopped run: check that nothing its result depends on has changed, then execute what is left of it."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.atomic_files import write_text
from finetune.build.data import with_loaders_that_fit
from finetune.build.paths import check_data_is_there, with_absolute_paths
from finetune.build.python_objects import PythonObjects, require_objects
from finetune.build.training import timeout_s
from finetune.checksums import require_checksums, verify
from finetune.config import check_overrides, from_yaml, to_plain, to_yaml, with_overrides
from finetune.config.schema import Config
from finetune.config.trust import require_trust
from finetune.data.sources import place_settings
from finetune.distributed import is_rank_zero, knows_other_machines, processes_started
from finetune.errors import UserError, shortened
from finetune.file_lock import FolderLock, remove_left_lock
from finetune.plain import to_plain as plain_fields
from finetune.process_tuning import release_freed_blocks
from finetune.run_folder import RecordedData, RunFolder, differences, files_read_back, read_run_record
from finetune.run_names import CONFIG, RECORD
from finetune.runners.heartbeats import beating
from finetune.runners.report import report_from_files
from finetune.safe_files import inside
from finetune.terminal_log import show, show_log

if TYPE_CHECKING:
    from finetune.build import RunParts
    from finetune.plain import Json
    from finetune.run_folder import RunRecord
    from finetune.training.heartbeats import Heartbeats
    from finetune.training.run_result import RunResult

# setting that may change when a run is resumed -> effect of the change on the result
FREE = {
    **dict.fromkeys(place_settings(), "the data must be the same, which is checked"),
    "data.split_from": "the splits must be the same, which is checked",
    "data.num_workers": "the result does not depend on it",
    **dict.fromkeys(
        ("trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy"),
        "sums are computed in a different order, and each process draws its own dropout and mixup",
    ),
    "trainer.timeout_s": "the result does not depend on it",
    "report": "it is of the end of the run",
    "keep": "it is of the end of the run",
    "logger": "metrics of what is left go there",
}
# the loggers are chosen by the name of a file in conf/, which only a whole command composes
_OVERRIDABLE = [key for key in FREE if key != "logger"]


def resume(
    run_dir: Path,
    *,
    anyway: bool = False,
    trust: bool = False,
    overrides: Sequence[str] = (),
    typed: Config | None = None,
    tune_process: bool = False,
    objects: PythonObjects = PythonObjects(),
    heartbeats: "Heartbeats | None" = None,
) -> "RunResult":
    """Resume a run.

    Args:
        run_dir: Run folder.
        anyway: Whether to continue with other versions of the program or its libraries.
        trust: Whether to build every class that the configuration names; see :mod:`finetune.config.trust`.
        overrides: New values of settings in :data:`FREE`, except the loggers.
        typed: Whole configuration that the user typed again; None if there is none. It must be that of the run, except for
            settings that may change, which it changes; it may name any class. Another process that holds the run is then
            waited for, as the one that this one succeeds may still save its step.
        tune_process: Whether to change this process's garbage collection and allocator for speed; only the command line does.
        objects: Objects from Python that take the place of settings; none on the command line.
        heartbeats: Heartbeats that have begun; None begins them where there are other machines.

    Returns:
        The result, also of a run that had already finished.

    Raises:
        UserError: The folder is not a run, something that the result depends on has changed, or the configuration names
            something that only the user may name.
        RunError: Another process still holds the run after ``trainer.timeout_s``.
    """
    show_log()
    record, config = _read(run_dir)
    saved = to_plain(config)
    if typed is not None:
        config = _as_typed(run_dir, config, typed)
    if RunFolder(run_dir).is_finished:
        _verify(run_dir)
        _complete(run_dir, config, trust=trust)
        return _finished_result(run_dir)
    require_objects(record.decided.objects or {}, record.decided.beside, objects, run=str(run_dir))
    if typed is None:
        config = _for_this_machine(config, overrides, saved_in=run_dir / CONFIG)
    # loggers may change only where the user types them: a file could name any class
    then, now = _comparable(record.config, free=_OVERRIDABLE), _comparable(saved, free=_OVERRIDABLE)
    _refuse(run_dir, f"{CONFIG} has been edited, and differs from {RECORD}", differences(then, now))
    for line in require_trust(run_dir, config, trust=trust, typed=typed is not None):
        show(f"trusted: {line}")
    trusted = trust or typed is not None
    in_file = typed is None and not any(word.lstrip("+").startswith("trainer.") for word in overrides)
    _check_trainer(config, run_dir, trusted=trusted, in_file=in_file)
    wait_s = timeout_s(config) if typed is not None else 0.0
    with (
        beating(config, run_dir, trusted=trusted, begun=heartbeats) as heartbeats,
        _holding(run_dir, wait_s=wait_s, heartbeats=heartbeats) as finished_meanwhile,
    ):
        _verify(run_dir)
        if finished_meanwhile:
            show(f"Another process has just finished this run. Results: {RunFolder(run_dir).results}")
            return _finished_result(run_dir)
        check_data_is_there(config, command=f"finetune resume {shlex.quote(str(run_dir))}")
        _show_changes(record.config, config)
        if not anyway:
            _refuse_other_versions(run_dir, record)
        parts = _assemble(run_dir, record, config, trusted=trusted, tune_process=tune_process, objects=objects)
        _refuse_other_data(run_dir, record, parts)
        _show_other_threads(record)
        if is_rank_zero():
            # so that the next resume needs no overrides
            write_text(run_dir / CONFIG, to_yaml(config))
        show(f"resuming: {run_dir}")

        from finetune.runners.execute import execute

        return execute(
            config,
            parts,
            run_dir,
            trusted=trusted,
            tune_process=tune_process,
            objects=objects,
            heartbeats=heartbeats,
        )


def _finished_result(run_dir: Path) -> "RunResult":
    """Read the result of a run that has finished."""
    from finetune.report.run_files import read_results
    from finetune.training.run_result import RunResult

    folder = RunFolder(run_dir)
    return RunResult(run_dir=run_dir, bundle=folder.bundle, results=read_results(folder.results))


def _read(run_dir: Path) -> "tuple[RunRecord, Config]":
    """Return the record and the configuration of a run."""
    record = read_run_record(run_dir)
    return record, from_yaml(inside(run_dir, CONFIG))


def _verify(run_dir: Path) -> None:
    """Check that the files of a run, which no other process is writing now, are as they were written."""
    require_checksums(files_read_back(run_dir))
    if is_rank_zero():
        for path in files_read_back(run_dir):
            verify(path)


def _complete(run_dir: Path, config: Config, *, trust: bool) -> None:
    """Write the report of a finished run if it is missing, and delete what the run no longer needs."""
    folder = RunFolder(run_dir)
    if is_rank_zero():
        remove_left_lock(run_dir)
    show(f"This run has already finished. Results: {folder.results}")
    if config.report and not folder.report.is_file():
        show(f"report: {report_from_files(run_dir, config, trust=trust)}")
    if is_rank_zero() and config.keep != "all":
        folder.delete_spare_files()


def _as_typed(run_dir: Path, config: Config, typed: Config) -> Config:
    """Return the configuration that the user typed again for a run, which is that of the run but for what may change.

    Raises:
        UserError: A setting differs that may not change.
    """
    typed = with_absolute_paths(typed)
    different = differences(_comparable(to_plain(config)), _comparable(to_plain(typed)))
    if different:
        raise UserError(
            f"run_dir='{run_dir}': holds a run with other settings, and resume=auto goes on only with the same: "
            f"{shortened(different)}. Type the run's settings, or choose another folder."
        )
    return typed


def _for_this_machine(config: Config, overrides: Sequence[str], *, saved_in: Path) -> Config:
    """Return a run's configuration with as many processes and loaders as there are here, and with the overrides."""
    if (started := processes_started()) is not None:
        nodes, each = started
        config = replace(config, trainer={**config.trainer, "num_nodes": nodes, "devices": each})
    elif config.trainer.get("num_nodes", 1) != 1 and not knows_other_machines():
        # continues on this machine; a number typed now is refused with the way to start the others
        config = replace(config, trainer={**config.trainer, "num_nodes": 1})
    return _changed(with_loaders_that_fit(config, saved_in=saved_in), overrides)


def _check_trainer(config: Config, run_dir: Path, *, trusted: bool, in_file: bool) -> None:
    """Check the trainer's arguments, which may be others than those that the run began with.

    Args:
        config: Configuration that names them.
        run_dir: Run folder.
        trusted: Whether the user typed or trusts them.
        in_file: Whether they come from the run's file alone, which the message then names.

    Raises:
        UserError: An argument is wrong, or this machine lacks the device.
    """
    from finetune.build.training import check_trainer
    from finetune.training.quiet_lightning import quiet_lightning

    try:
        with quiet_lightning():
            check_trainer(config, run_dir, trusted=trusted)
    except UserError as error:
        raise (UserError(f"{run_dir / CONFIG}: {error}") if in_file else error) from None


@contextmanager
def _holding(run_dir: Path, *, wait_s: float, heartbeats: "Heartbeats | None") -> Iterator[bool]:
    """Lock the run against other processes while the block works on it; yield whether one of these has finished it.

    Rank 0 holds the lock for the other processes of its run, which wait until it does: what is left of the run must be the same
    to all of them.
    """
    folder = RunFolder(run_dir)
    if not is_rank_zero():
        if heartbeats is None:
            yield False
            return
        heartbeats.wait_for_holder(until=lambda: folder.is_finished)
        yield folder.is_finished
        return
    with FolderLock(run_dir, name=f"RUN='{run_dir}'", wait_s=wait_s):
        if heartbeats is not None:
            heartbeats.hold()
        yield folder.is_finished


def _show_changes(recorded: Mapping[str, Any], config: Config) -> None:
    """Show which settings change, and what that means for the result."""
    now = to_plain(config)
    for key, meaning in FREE.items():
        before, after = _value(recorded, key), _value(now, key)
        if before != after:
            before, after = (" and ".join(one) or "none" if isinstance(one, dict) else one for one in (before, after))
            show(f"{key}: {before} -> {after} ({meaning})")


def _refuse_other_versions(run_dir: Path, record: "RunRecord") -> None:
    from finetune.versions import versions

    what = "started with other versions (finetune resume RUN --anyway continues, and the result may differ)"
    _refuse(run_dir, what, differences(record.versions, versions()))


def _assemble(
    run_dir: Path, record: "RunRecord", config: Config, *, trusted: bool, tune_process: bool, objects: PythonObjects
) -> "RunParts":
    """Build the objects of the run; their weights are loaded from its folder later."""
    from finetune.build import assemble
    from finetune.models.hub import cache_alone

    # if the run was killed before its initial weights were saved, they are loaded from their source again
    begun = any(path for name in ("start.safetensors", "result.json") for path in run_dir.glob(f"phases/0-*/{name}"))
    with nullcontext() if trusted else cache_alone():
        return assemble(
            config,
            show,
            description=record.model if begun else None,
            worker_init=release_freed_blocks if tune_process else None,
            trusted=trusted,
            objects=objects,
        )


def _refuse_other_data(run_dir: Path, record: "RunRecord", parts: "RunParts") -> None:
    data = RecordedData.of(parts.source.index)
    if data != record.data:
        same_name = plain_fields(replace(data, fingerprint=record.data.fingerprint))
        detail = differences(plain_fields(record.data), same_name)
        _refuse(run_dir, "the data has changed", detail or ["files were renamed, or their contents changed"])


def _show_other_threads(record: "RunRecord") -> None:
    import torch

    if torch.get_num_threads() != record.threads:
        show(
            f"This run started with {record.threads} threads and continues with {torch.get_num_threads()}: sums are "
            "computed in a different order, so the result will not be bitwise identical. OMP_NUM_THREADS sets the number."
        )


def _changed(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with the overrides applied.

    Raises:
        UserError: An override changes something that the result depends on, or is not a setting.
    """
    if not overrides:
        return config
    fixed = [word for word in overrides if word.lstrip("+").partition("=")[0] not in _OVERRIDABLE]
    if fixed:
        raise UserError(
            f"{fixed[0]}: cannot be changed in a run that has started. The result depends on it. These can: "
            f"{', '.join(_OVERRIDABLE)}. For anything else start a new run."
        )
    return with_absolute_paths(with_overrides(config, check_overrides(overrides)))


def _value(config: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return config[section].get(name) if name else config[section]


def _comparable(config: Mapping[str, Any], *, free: Collection[str] = tuple(FREE)) -> "Mapping[str, Json]":
    """Return a configuration without the locations of the run and its data, and without other free settings."""
    kept = {key: dict(value) if key in ("data", "trainer") else value for key, value in config.items()}
    for key in ("run_dir", "resume", *free):
        section, _, name = key.partition(".")
        if name:
            kept[section].pop(name, None)
        else:
            kept.pop(section, None)
    return kept


def _refuse(run_dir: Path, what: str, found: list[str]) -> None:
    if found:
        raise UserError(f"RUN='{run_dir}': {what}, so it cannot be resumed exactly. {shortened(found)}.")
