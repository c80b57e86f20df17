"""Choose, create and lock the folder of a new run."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.atomic_files import make_folder, sync_folder
from finetune.build.classifier import network_name
from finetune.build.paths import data_name
from finetune.build.training import timeout_s
from finetune.config.schema import Config
from finetune.distributed import RUN_DIR_OF_RUN, is_rank_zero, started_together
from finetune.errors import RunError, UserError
from finetune.file_errors import in_words
from finetune.file_lock import LOCK, FolderLock
from finetune.resume_command import resume_command
from finetune.run_names import RECORD


def choose_run_dir(config: Config) -> Path:
    """Choose the folder of a new run, as far as it is known before :func:`make_run_dir` creates it.

    A process that DDP started uses the folder of the process that started it.

    Raises:
        UserError: The given folder is not empty, or none is given and the processes, which were started from outside, could
            not agree on one.
    """
    inherited = os.environ.get(RUN_DIR_OF_RUN)
    if inherited and not is_rank_zero():
        return Path(inherited)
    if not config.run_dir and (started_together() or config.trainer.get("num_nodes", 1) != 1):
        raise UserError(
            "run_dir: must be given where the processes of a run are started by torchrun, by a cluster or by hand: all of "
            "them must name the same folder. Set run_dir=DIR, on a disk that every node sees."
        )
    if config.run_dir:
        folder = Path(config.run_dir)
        if not is_rank_zero():
            return folder
        _must_be_empty(folder, config)
        return folder
    name = config.name or f"{data_name(config)}-{network_name(config)}-{config.schedule.name}"
    return Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name.replace('/', '_')}"


@contextmanager
def make_run_dir(config: Config, folder: Path) -> Iterator[Path]:
    """Create the folder of a new run, and lock it for this process while the block runs.

    If several processes ask for the same folder, only one gets it. The other processes that DDP started create nothing, because
    the first process creates the folder.

    Args:
        config: Configuration of the run.
        folder: Folder from :func:`choose_run_dir`.

    Yields:
        The folder; with a number appended if none was given and another process was faster.

    Raises:
        UserError: Another process holds the given folder, or the folder is no longer empty.
        RunError: With ``resume=auto``, the same.
    """
    if not is_rank_zero():
        yield folder
        return
    if config.run_dir:
        name = f"run_dir='{config.run_dir}'"
        try:
            make_folder(folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and folder.parent.is_dir():
                # as in /proc, where the system makes all that there is
                why = f"{name}: cannot be made, its file system takes no new folders. Choose another place."
                raise UserError(why) from error
            raise UserError(in_words(error, folder, "cannot be made", name=name)) from error
        auto = config.resume == "auto"
        with FolderLock(folder, name=name, wait_s=timeout_s(config) if auto else 0.0):
            if auto and os.path.lexists(folder / RECORD):
                raise RunError(
                    f"{name}: another process has begun this run since this one started. Start again, to go on with it."
                )
            _must_be_empty(folder, config)
            yield folder
        return
    for free in _numbered(folder):
        try:
            make_folder(free.parent)
            free.mkdir()
            sync_folder(free.parent)
        except FileExistsError:
            continue
        except OSError as error:
            reason = in_words(error, free, "cannot be made", name=f"run_dir={str(free)!r}")
            raise UserError(f"{reason} Or choose another place: run_dir=DIR.") from error
        with FolderLock(free, name=f"run_dir='{free}'"):
            yield free
        return


def _numbered(base: Path) -> Iterator[Path]:
    """Yield a path, then the path with -2, -3, ... appended."""
    yield base
    yield from (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))


def _must_be_empty(folder: Path, config: Config) -> None:
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise UserError(
            f"run_dir='{config.run_dir}': must be new or empty. It is not empty. "
            f"Choose another folder, or resume that run: {resume_command(str(config.run_dir))}"
        )
