"""Locks that end with the process that holds them, however it ends.

On Unix a lock on a byte of a file (``fcntl.lockf``) belongs to one process. A worker that the process has forked, and that
outlives it for a moment, does not keep it; a lock by ``flock`` would pass on to the worker, and a run that was killed and is
resumed at once would find itself in use. Windows locks a byte of an open file, until the system closes it.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import time
from pathlib import Path
from types import TracebackType

from finetune.distributed import process_lives
from finetune.errors import UserError
from finetune.file_errors import in_words

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# far behind what is written in the file: Windows lets nobody else read a byte that is locked
_AT = 2**20


def lock_byte(descriptor: int, at: int, *, wait: bool = False) -> bool:
    """Lock one byte of an open file; False where another process has it.

    Args:
        descriptor: Of the file, open for writing.
        at: Number of the byte; it need not be there.
        wait: Until the other process lets go of it or dies.

    Raises:
        OSError: The file system has no locks.
    """
    if fcntl is not None:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, at)
        except (BlockingIOError, PermissionError):
            return False
        return True
    import msvcrt

    while True:
        os.lseek(descriptor, at, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            if not wait:
                return False
            time.sleep(0.1)
        else:
            return True


def unlock_byte(descriptor: int, at: int) -> None:
    """Let go of a byte that :func:`lock_byte` has locked."""
    if fcntl is not None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, at)
        return
    import msvcrt

    os.lseek(descriptor, at, os.SEEK_SET)
    msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)


def open_lock_file(path: Path) -> int:
    """Open a file that is locked and written, made where it is missing; where a link leads, nothing is made or written.

    Raises:
        OSError: It cannot be opened, or is no ordinary file.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it must be an ordinary file", str(path))
    return descriptor


class FolderLock:
    """Keeps other processes of this program out of a folder that one of them writes.

    Use it as a context manager. The file ``.lock`` says which process has the folder, and is removed at the end; where the
    process was killed, the system takes the lock back and the file stays for the next one.

    Args:
        folder: Exists.
        name: Of the folder as the user gave it, for messages.

    Raises:
        UserError: Another process has the folder, or nothing can be written there.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        self._name, self._path = name, folder / LOCK
        while True:
            self._open()
            if self._is_there():
                break
            # the process that had it has just removed the file: this is no lock on what others open
            os.close(self._descriptor)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, json.dumps(holder).encode())
        except OSError:
            # on a full disk the lock holds all the same
            return

    def _open(self) -> None:
        try:
            self._descriptor = open_lock_file(self._path)
        except OSError as error:
            raise UserError(
                in_words(error, self._path, f"{self._path.name} cannot be written in it", name=self._name)
            ) from error
        try:
            free = lock_byte(self._descriptor, _AT)
        except OSError:
            # a file system without locks, as some that are mounted from other machines: what is written there must do
            free = not self._holder_lives()
        if not free:
            message = self._in_use()
            os.close(self._descriptor)
            raise UserError(message)

    def _is_there(self) -> bool:
        """Whether the file that is open is the one in the folder."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _holder(self) -> dict[str, object]:
        try:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            holder = json.loads(os.read(self._descriptor, 4096))
        except (OSError, ValueError):
            return {}
        return holder if isinstance(holder, dict) else {}

    def _holder_lives(self) -> bool:
        """Whether the process that is written in the file is one of this machine, and there; of others nobody knows."""
        holder = self._holder()
        pid = holder.get("pid")
        if not isinstance(pid, int) or pid == os.getpid() or holder.get("host") != socket.gethostname():
            return False
        return process_lives(pid)

    def _in_use(self) -> str:
        holder = self._holder()
        for _ in range(20):
            if holder:
                break
            # it has the lock, and has not written yet who it is
            time.sleep(0.05)
            holder = self._holder()
        who = "another process"
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')}"
        since = f", since {holder.get('since')}" if holder.get("since") else ""
        return f"{self._name}: in use. {who} is writing there{since}. Wait until it ends, or stop it."

    def release(self) -> None:
        """Give it up; a second time does nothing."""
        if self._descriptor < 0:
            return
        # removed while it is locked: nobody else can have it by then; Windows removes no open file
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
