"""Atomic files, which are either complete or absent: written beside their target, synced, then renamed."""

import contextlib
import glob
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.distributed import process_lives
from finetune.errors import FileError, RunError, UserError
from finetune.file_errors import file_error, file_of

PART = ".part"
_A_DAY = 86_400.0
# no dots, because they separate the parts of the file name
_HOST = socket.gethostname().replace(".", "_")


@contextlib.contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a path beside the target to write to, and rename it to the target if the block succeeds.

    The previous file at the target stays intact until then, also through a kill, a full disk, a failure in the block or a power
    cut. Once this returns, a power cut cannot lose the new file: its bytes, its name and the folders created for it are on disk.

    Raises:
        FileError: The system did not allow the write; nothing is left beside the target.
    """
    target = Path(target)
    part = _part_of(target)
    replaced = False
    try:
        make_folder(target.parent)
        # in a folder of others it may be a link, which must not be written through
        _remove(part)
        yield part
        with part.open("r+b") as written:  # Windows syncs only what is open for writing
            os.fsync(written.fileno())
        open_to_umask(part)
        os.replace(part, target)
        replaced = True
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if (failed := _failure(error, target, replaced=replaced)) is not None:
            raise failed from error
        raise


def _failure(error: BaseException, target: Path, *, replaced: bool) -> FileError | None:
    """Return the error message if the target could not be written, else None."""
    if isinstance(error, (UserError, RunError)):
        return None
    named = file_of(error)
    # the error may come from another file that the block read
    if named is not None and target.parent not in (named.parent, named) and named not in target.parents:
        return None
    if replaced:
        return file_error(error, target, "could not be flushed to disk", after="It may be lost in a power cut.")
    return file_error(error, target, "could not be written", after="What stood there before is untouched.")


@contextlib.contextmanager
def work_folder(target: str | Path) -> Iterator[Path]:
    """Yield a new folder beside the target, to make the target in; it is removed at the end, or after a kill by the next one.

    While :func:`replace_folder` puts a folder in the place of an earlier one, that waits in the work folder. If a kill leaves it
    there, the next work folder of the same target puts it back.

    Raises:
        OSError: The system did not allow the creation.
    """
    part = _part_of(Path(target))
    make_folder(part.parent)
    _remove(part)
    part.mkdir()
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            _remove(part)


def replace_folder(made: Path, target: Path) -> None:
    """Rename a folder that was made in the target's work folder to the target; an earlier target is gone afterwards.

    Raises:
        OSError: The system did not allow it; the work folder puts the earlier one back.
    """
    if os.path.lexists(target):
        # a folder cannot be renamed onto one that is not empty
        os.replace(target, _earlier(made.parent, target))
    os.replace(made, target)


def _part_of(target: Path) -> Path:
    """Return the temporary path of a target; remove those that other processes have left of it."""
    with contextlib.suppress(OSError):
        for left in target.parent.glob(f".{glob.escape(target.name)}.*{PART}"):
            _remove_abandoned(left)
    # the name includes the process, because two processes that write the same file must not write the same part
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}{PART}")


def _earlier(work: Path, target: Path) -> Path:
    return work / f"{target.name}.earlier"


def _remove(part: Path) -> None:
    """Remove a temporary file or folder if there is one; what waits in it goes back to its place if nothing has taken that."""
    if not os.path.lexists(part):
        return
    if part.is_symlink() or not part.is_dir():
        part.unlink(missing_ok=True)
        return
    target = part.with_name(part.name.removesuffix(PART).rpartition(".")[0][1:])
    with contextlib.suppress(FileNotFoundError):
        if not os.path.lexists(target):
            os.replace(_earlier(part, target), target)
    shutil.rmtree(part)


def make_folder(folder: str | Path) -> None:
    """Create a folder and its missing parents, so that a power cut cannot lose any of them.

    Raises:
        OSError: The system did not allow the creation; the error names the folder.
    """
    missing = []
    at = Path(folder)
    while not at.is_dir():
        missing.append(at)
        if at == at.parent:
            break
        at = at.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync_folder(new.parent)


def open_to_umask(path: Path) -> None:
    """Give a file the default mode of the umask; safetensors makes its files readable by the owner only."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(target) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()


def write_json(target: str | Path, value: Any) -> None:
    """Write JSON atomically; refuse numbers that JSON does not have (NaN, infinity)."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def remove_parts(folder: str | Path) -> None:
    """Remove the temporary files and folders of interrupted writes below a folder."""
    # a list: the parts inside a removed folder are gone with it
    for part in sorted(Path(folder).rglob(f".*{PART}")):
        _remove_abandoned(part)


def _remove_abandoned(part: Path) -> None:
    """Remove a temporary file or folder if its process has ended or, for another host's, if nobody wrote to it for a day."""
    host, _, number = part.name.removesuffix(PART).rpartition(".")[2].rpartition("-")
    with contextlib.suppress(OSError):
        if host in ("", _HOST):
            abandoned = number.isdigit() and not process_lives(int(number))
        else:
            abandoned = time.time() - part.stat().st_mtime > _A_DAY
        if abandoned:
            _remove(part)


def sync_folders(folder: str | Path) -> None:
    """Sync the names of a folder and of all folders below it, because a killed process may have left them unsynced.

    Otherwise a power cut could lose files that a resumed run has already built on.
    """
    folder = Path(folder)
    for each in (folder.absolute().parent, folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(each)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk: new, renamed and removed ones."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open a folder; its renames are durable anyway
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        # the system knows only a descriptor, not the name
        error.filename = str(folder)
        raise
    finally:
        os.close(descriptor)
