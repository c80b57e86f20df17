"""Describes a file error in one sentence: which file, what could not be done, and why.

The system, torch and safetensors report the same failure in different ways: as an ``OSError`` with a number and perhaps a
file name, as a ``RuntimeError`` of torch's zip writer around it, or as a ``SafetensorError`` with the system's words.
"""

import errno
import os
import re
import shutil
from pathlib import Path

from finetune.errors import FileError

# error number -> cause and advice
_CAUSES = {
    **dict.fromkeys((errno.ENOSPC, errno.EFBIG), ("the disk is full", "Make room.")),
    errno.EDQUOT: ("the disk quota is used up", "Make room, or ask for more."),
    errno.EIO: ("the disk reports an input/output error", "Check the disk (dmesg names it) or use another one."),
    errno.EROFS: ("the file system is read-only", "Mount it writable or use another one."),
    **dict.fromkeys((errno.EACCES, errno.EPERM), ("permission denied", "Give this user access to it.")),
    errno.ENOMEM: ("the system has no memory left", "Free memory."),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), ("too many files are open", "Raise the limit (ulimit -n).")),
    errno.ESTALE: ("the network file system has lost it", "Mount it again."),
    errno.ENOENT: ("it no longer exists", "Put it back."),
    errno.ENOTDIR: ("a part of its path is not a folder", "Use another path."),
    errno.EISDIR: ("a folder is in its place", "Move the folder away."),
    errno.EEXIST: ("a file is in its place, or in that of a folder above it", "Use another path."),
    errno.ENAMETOOLONG: ("its name is too long", "Use a shorter one."),
}
# safetensors ends with "(os error 28)"; torch's writer has only the system's words
_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_WORDS = {
    os.strerror(number): number
    for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM)
}

# torch's allocators report a refused allocation as a RuntimeError
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def errno_of(error: BaseException) -> int | None:
    """Return the number of the system error behind an exception; None if the system is not the cause.

    >>> errno_of(RuntimeError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
    True
    >>> errno_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")) == errno.ENOMEM
    True
    >>> errno_of(RuntimeError("unable to mmap 136748 bytes from file <x>: Cannot allocate memory (12)")) == errno.ENOMEM
    True
    >>> errno_of(ValueError("wrong")) is None
    True
    """
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno is not None:
            return at.errno
        if isinstance(at, MemoryError):
            return errno.ENOMEM
        text = str(at)
        if isinstance(at, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY):
            return errno.ENOMEM
        if match := _NUMBER_IN_TEXT.search(text):
            return int(match[1] or match[2])
        for words, number in _WORDS.items():
            if words in text:
                return number
        at = at.__cause__ or at.__context__
    return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation was refused, whatever the code that asked for it makes of that."""
    return errno_of(error) == errno.ENOMEM


def file_of(error: BaseException) -> Path | None:
    """Return the file that the system named in its error; None if it named none."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and isinstance(at.filename, (str, bytes, os.PathLike)):
            # for a rename, the new name is the file being written
            return Path(os.fsdecode(at.filename2 or at.filename))
        at = at.__cause__ or at.__context__
    return None


def file_error(error: BaseException, path: str | Path | None, what: str, *, after: str = "") -> FileError | None:
    """Return the failure as a message for the user; None if the system is not its cause.

    Args:
        error: Exception that was raised.
        path: File of the failure; None takes the file that the system named.
        what: What could not be done, such as ``could not be written``.
        after: Sentence about the state that is left.
    """
    path = path if path is not None else file_of(error)
    if errno_of(error) is None or path is None:
        return None
    return FileError(in_words(error, path, what, after=after))


def in_words(error: BaseException, path: str | Path, what: str, *, name: str = "", after: str = "") -> str:
    """Describe a failure for the user: file, failed action, the system's reason, and advice.

    Args:
        error: Exception caused by a system error.
        path: File or folder of the failure.
        what: What could not be done, such as ``cannot be made``.
        name: Path as the user gave it, such as ``run_dir='x'``; empty for the path itself.
        after: Sentence about the state that is left.
    """
    number = errno_of(error)
    unknown = str(error) if number is None else os.strerror(number)
    cause, advice = _CAUSES.get(number or 0, (unknown, "Remove the cause."))
    if number in (errno.ENOSPC, errno.EDQUOT):
        cause += _free_beside(Path(path))
    return " ".join(part for part in (f"{name or path}: {what}, {cause}.", after, advice) if part)


def read_error(error: BaseException, path: str | Path, *, name: str | None = None) -> FileError | None:
    """Return the error if the system cannot read a file; None if the file's contents are wrong.

    A reader misled by a damaged file may get errors from the system too, but with other numbers than these.

    Args:
        error: Exception that was raised.
        path: The file.
        name: Setting and path, as the message shows them; None for the path.
    """
    if isinstance(error, FileNotFoundError) and error.errno is None and os.path.exists(path):
        # what safetensors answers whenever it cannot open a file, without the system's number
        return FileError(
            f"{name or path}: could not be opened, though it is there. The disk may report an input/output error, or too many "
            "files may be open. Try again, then check the disk (dmesg names it) and the limit (ulimit -n)."
        )
    if errno_of(error) not in (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return None
    return file_error(error, name or path, "could not be read")


def _free_beside(path: Path) -> str:
    """Return the free space on the disk of a path, in brackets; empty if the system does not report it."""
    at = path.absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    try:
        return f" ({shutil.disk_usage(at).free / 1e6:.0f} MB free)"
    except OSError:
        return ""
