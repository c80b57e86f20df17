"""``finetune resume``: continue a stopped run, with a result bitwise identical to that of an uninterrupted one."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.atomic_files import write_text
from finetune.build.paths import check_data_is_there, with_absolute_paths
from finetune.build.python_objects import PythonObjects, require_objects
from finetune.commands.options import Arguments
from finetune.config import changed, check_overrides, from_yaml, to_plain, to_yaml
from finetune.config.overrides import moved_data
from finetune.config.schema import Config
from finetune.config.trust import require_trust
from finetune.data.sources import place_settings
from finetune.distributed import is_rank_zero, knows_other_machines
from finetune.errors import UserError, shortened
from finetune.file_lock import FolderLock, remove_left_lock
from finetune.process_tuning import release_freed_blocks
from finetune.terminal_log import show_log

if TYPE_CHECKING:
    from finetune.plain import Json
    from finetune.run_folder import RunRecord
    from finetune.training.results import RunResult

ABOUT = """\
Continue a stopped run. Weights, metrics and predictions are those of the uninterrupted run.
A run whose configuration, data or program version has changed since is refused, and the difference is named;
--anyway continues with other versions of the program or its libraries, and the result may then differ.

A run folder is data: of the classes that its configuration names, only optimizers, local loggers and callbacks of torch,
timm and Lightning are built. A run that names other classes, contacts an address or holds links out of its folder is
refused with a list of these; --trust shows the list and continues.

Settings that the result does not depend on can be changed, and stay changed:
  data.root=DIR, data.path=PATH      where the data is now
  data.num_workers=4                 the result stays bitwise identical
  trainer.devices=2, trainer.num_nodes=2, trainer.accelerator=gpu, trainer.strategy=ddp
                                     the same except for rounding, dropout and mixup"""

# setting that may change when a run is resumed -> effect of the change on the result
FREE = {
    **dict.fromkeys(place_settings(), "the data must be the same, which is checked"),
    "data.num_workers": "the result does not depend on it",
    **dict.fromkeys(
        ("trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy"),
        "sums are taken in another order, and each process draws its own dropout and mixup",
    ),
}


def run(argv: Sequence[str]) -> int:
    """Run ``finetune resume`` and return the exit status."""
    parser = Arguments("resume", ABOUT, ending="RUN is a run folder.")
    parser.add_argument(
        "words", metavar="RUN [DIR] [key=value ...]", nargs="*", help="a run folder, and settings that may change"
    )
    parser.add_argument(
        "--anyway", action="store_true", help="continue with other versions of the program or its libraries"
    )
    parser.add_argument("--trust", action="store_true", help="build every class that the run's configuration names")
    given = parser.read(argv)
    overrides = list(map(moved_data, given.words[1:]))
    if not given.words:
        raise parser.wrong("needs one RUN. Given: nothing")
    resume(
        Path(given.words[0]).expanduser(),
        anyway=given.anyway,
        trust=given.trust,
        overrides=overrides,
        tune_process=True,
    )
    if "finetune.training.rank_monitor" in sys.modules:
        from finetune.training.rank_monitor import end_other_ranks

        end_other_ranks()
    return 0


def resume(
    run_dir: Path,
    *,
    anyway: bool = False,
    trust: bool = False,
    overrides: Sequence[str] = (),
    typed: Config | None = None,
    tune_process: bool = False,
    objects: PythonObjects = PythonObjects(),
) -> "RunResult | None":
    """Resume a run.

    Args:
        run_dir: Run folder.
        anyway: Whether to continue with other versions of the program or its libraries.
        trust: Whether to build every class that the configuration names; see :mod:`finetune.config.trust`.
        overrides: New values of settings in :data:`FREE`.
        typed: Configuration that the user typed on this command line; None if there is none. A run with an equal
            configuration may name whatever this one names.
        tune_process: Whether to change this process's garbage collection and allocator for speed; only the command line does.
        objects: Objects from Python that take the place of settings; none on the command line.

    Returns:
        The result; None if the run had already finished.

    Raises:
        UserError: The folder is not a run, something that the result depends on has changed, or the configuration names
            something that only the user may name.
    """
    from finetune.build.data import with_loaders_that_fit
    from finetune.checksums import require_checksums, verify
    from finetune.run_folder import RunFolder, differences, files_read_back, read_run_record
    from finetune.run_names import CONFIG, RECORD
    from finetune.safe_files import inside
    from finetune.terminal_log import show

    show_log()
    record = read_run_record(run_dir)
    config = from_yaml(inside(run_dir, CONFIG))
    require_checksums(files_read_back(run_dir))
    if is_rank_zero():
        for path in files_read_back(run_dir):
            verify(path)
    if RunFolder(run_dir).is_finished:
        if is_rank_zero():
            remove_left_lock(run_dir)
        show(f"This run has already finished. Results: {RunFolder(run_dir).results}")
        if config.report and not RunFolder(run_dir).report.is_file():
            from finetune.commands.report import write_from_files

            show(f"report: {write_from_files(run_dir, config, trust=trust)}")
        if is_rank_zero() and config.keep != "all":
            RunFolder(run_dir).delete_spare_files()
        return None
    require_objects(record.decided.objects or {}, objects, run=str(run_dir))
    if config.trainer.get("num_nodes", 1) != 1 and not knows_other_machines():
        # continues on this machine; a number typed now is refused with the way to start the others
        config = replace(config, trainer={**config.trainer, "num_nodes": 1})
    config = _changed(with_loaders_that_fit(config, saved_in=run_dir / CONFIG), overrides)
    then, now = _comparable(record.config), _comparable(to_plain(config))
    _refuse(run_dir, f"{CONFIG} has been edited, and differs from {RECORD}", differences(then, now))
    same_as_typed = typed is not None and _placeless(with_absolute_paths(typed)) == _placeless(config)
    for line in require_trust(run_dir, config, trust=trust, typed=same_as_typed):
        show(f"trusted: {line}")
    trusted = trust or same_as_typed
    go_on = partial(
        _go_on, run_dir, record, config, anyway=anyway, trusted=trusted, tune_process=tune_process, objects=objects
    )
    if not is_rank_zero():
        return go_on()
    with FolderLock(run_dir, name=f"RUN='{run_dir}'"):
        if RunFolder(run_dir).is_finished:
            show(f"Another process has just finished this run. Results: {RunFolder(run_dir).results}")
            return None
        return go_on()


def _go_on(
    run_dir: Path,
    record: "RunRecord",
    config: Config,
    *,
    anyway: bool,
    trusted: bool,
    tune_process: bool,
    objects: PythonObjects,
) -> "RunResult":
    from finetune.plain import to_plain as plain_fields
    from finetune.run_folder import RecordedData, differences
    from finetune.run_names import CONFIG
    from finetune.runner import execute
    from finetune.terminal_log import show

    check_data_is_there(config, command=f"finetune resume {shlex.quote(str(run_dir))}")
    for key, meaning in FREE.items():
        before, after = _value(record.config, key), _value(to_plain(config), key)
        if before != after:
            show(f"{key}: {before} -> {after} ({meaning})")

    from finetune.versions import versions

    changed = differences(record.versions, versions())
    if changed and not anyway:
        _refuse(run_dir, "started with other versions (--anyway continues, and the result may differ)", changed)

    from finetune.build import assemble

    # if the run was killed before its initial weights were saved, they are loaded from their source again
    begun = any(path for name in ("start.safetensors", "result.json") for path in run_dir.glob(f"phases/0-*/{name}"))
    description = record.model if begun else None
    worker_init = release_freed_blocks if tune_process else None
    parts = assemble(config, show, description=description, worker_init=worker_init, trusted=trusted, objects=objects)
    data = RecordedData.of(parts.source.index)
    if data != record.data:
        same_name = plain_fields(replace(data, fingerprint=record.data.fingerprint))
        detail = differences(plain_fields(record.data), same_name)
        _refuse(run_dir, "the data has changed", detail or ["files were renamed, or their contents changed"])

    import torch

    if torch.get_num_threads() != record.threads:
        show(
            f"This run started with {record.threads} threads and continues with {torch.get_num_threads()}: sums are "
            "taken in another order, so the result will not be bitwise identical. OMP_NUM_THREADS sets the number."
        )
    if is_rank_zero():
        # so that the next resume needs no overrides
        write_text(run_dir / CONFIG, to_yaml(config))
    show(f"resuming: {run_dir}")
    return execute(config, parts, run_dir, trusted=trusted, tune_process=tune_process, objects=objects)


def _changed(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with the overrides applied.

    Raises:
        UserError: An override changes something that the result depends on, or is not a setting.
    """
    if not overrides:
        return config
    fixed = [word for word in overrides if word.lstrip("+").partition("=")[0] not in FREE]
    if fixed:
        raise UserError(
            f"{fixed[0]}: cannot be changed in a run that has started. The result depends on it. These can: {', '.join(FREE)}. "
            "For anything else start a new run."
        )
    return with_absolute_paths(changed(config, check_overrides(overrides)))


def _placeless(config: Config) -> "Mapping[str, Json]":
    """Return a configuration without its run folder, which may have been moved."""
    return {key: value for key, value in to_plain(config).items() if key != "run_dir"}


def _value(config: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return config[section].get(name)


def _comparable(config: Mapping[str, Any]) -> "Mapping[str, Json]":
    """Return a configuration without the locations of the run and its data, and without other free settings."""
    kept = {key: dict(value) if key in ("data", "trainer") else value for key, value in config.items()}
    for key in FREE:
        section, _, name = key.partition(".")
        kept[section].pop(name, None)
    return {key: value for key, value in kept.items() if key != "run_dir"}


def _refuse(run_dir: Path, what: str, found: list[str]) -> None:
    if found:
        raise UserError(f"RUN='{run_dir}': {what}, so it cannot be resumed exactly. {shortened(found)}.")
