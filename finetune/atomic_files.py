"""Files that are either whole or not there: written beside their target, synced, renamed."""

import contextlib
import glob
import json
import os
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
# without dots, which part the name of a file
_HOST = socket.gethostname().replace(".", "_")


@contextlib.contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A path beside the target to write to; it takes the target's place when the block ends well.

    What stood at the target before stays whole until then, also through a kill, a full disk, a failure in the block or a
    power cut. When this returns, a power cut cannot take the new file away any more: its bytes, its name and the folders
    made for it are on the disk.

    Raises:
        FileError: The system did not let it be written; nothing is left beside the target.
    """
    target = Path(target)
    with contextlib.suppress(OSError):
        for left in target.parent.glob(f".{glob.escape(target.name)}.*{PART}"):
            _remove_abandoned(left)
    # the process: two that write the same file must not write the same part
    part = target.with_name(f".{target.name}.{_HOST}-{os.getpid()}{PART}")
    replaced = False
    try:
        make_folder(target.parent)
        yield part
        with part.open("rb") as written:
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
    """The message where it is the target that could not be written."""
    if isinstance(error, (UserError, RunError)):
        return None
    named = file_of(error)
    # the block may have read other files
    if named is not None and target.parent not in (named.parent, named) and named not in target.parents:
        return None
    if replaced:
        return file_error(
            error, target, "could not be put on the disk for good", after="It may be lost in a power cut."
        )
    return file_error(error, target, "could not be written", after="What stood there before is untouched.")


def make_folder(folder: str | Path) -> None:
    """Make a folder and those above it that are missing, each so that a power cut cannot take it away.

    Raises:
        OSError: The system did not let one be made; it is named.
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
    """Give a file the mode that an ordinary one would have; safetensors makes its files readable by the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(target) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()


def write_json(target: str | Path, value: Any) -> None:
    """Write JSON atomically; numbers that JSON does not have (NaN, infinity) are refused."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def remove_parts(folder: str | Path) -> None:
    """Remove what interrupted writes left behind below a folder."""
    for part in Path(folder).rglob(f".*{PART}"):
        _remove_abandoned(part)


def _remove_abandoned(part: Path) -> None:
    """Remove the part of a file whose process is gone; that of another machine, if nobody wrote to it for a day."""
    host, _, number = part.name.removesuffix(PART).rpartition(".")[2].rpartition("-")
    with contextlib.suppress(OSError):
        if host in ("", _HOST):
            gone = number.isdigit() and not process_lives(int(number))
        else:
            gone = time.time() - part.stat().st_mtime > _A_DAY
        if gone:
            part.unlink(missing_ok=True)


def sync_folders(folder: str | Path) -> None:
    """Put the names of a folder and of all below it on the disk: a killed process may have left them unsynced.

    What a resumed run goes on from must not be taken away by a power cut after it has gone on.
    """
    folder = Path(folder)
    for each in (folder.absolute().parent, folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(each)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: new, renamed and removed ones."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open a folder; its rename is durable without
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        # the system knows a descriptor alone
        error.filename = str(folder)
        raise
    finally:
        os.close(descriptor)
