"""Files that are either whole or not there: written beside their target, synced, renamed."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.errors import RunError

PART = ".part"


@contextlib.contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A path beside the target to write to; it takes the target's place when the block ends well.

    What stood at the target before stays whole until then, also through a kill, a full disk or a failure in the block.

    Raises:
        RunError: The disk is full.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # the process number: two processes that write the same file must not write the same part
    part = target.with_name(f".{target.name}.{os.getpid()}{PART}")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        open_to_umask(part)
        os.replace(part, target)
        _sync_folder(target.parent)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if is_disk_full(error):
            raise RunError(
                f"{target}: could not be written, the disk is full "
                f"({shutil.disk_usage(target.parent).free / 1e6:.0f} MB free). What stood there before is untouched. "
                "Make room and go on with: finetune resume RUN"
            ) from error
        raise


def open_to_umask(path: Path) -> None:
    """Give a file the mode that an ordinary one would have; safetensors makes its files readable by the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full, in the words of the system, of torch or of safetensors."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        # safetensors keeps the system's words; torch's zip writer puts an error of its own in front of the system's
        if "No space left" in str(at) or "File too large" in str(at):
            return True
        at = at.__cause__ or at.__context__
    return False


def write_text(target: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(target) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()


def write_json(target: str | Path, value: Any) -> None:
    """Write JSON atomically; numbers that JSON does not have (NaN, infinity) are refused."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def remove_parts(folder: str | Path) -> None:
    """Remove what an interrupted write left behind below a folder."""
    for part in Path(folder).rglob(f".*{PART}"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder; its rename is durable without
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
