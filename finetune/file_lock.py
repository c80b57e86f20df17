"""Locks that end with the process that holds them, however it ends.

On Unix a lock on a byte of a file (``fcntl.lockf``) belongs to one process. A worker forked from the process that outlives it for
a moment does not keep the lock; a ``flock`` lock would pass on to the worker, and a run that was killed and is resumed at once
would be reported as in use. Windows locks a byte of an open file until the system closes the file.

The library filelock does not serve here: on Unix it locks by ``flock``. It also locks whole files, where the activation cache
locks a byte for each of its chunks.
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
from finetune.errors import RunError, UserError
from finetune.file_errors import in_words
from finetune.terminal_log import show

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# far beyond the file's contents, because Windows lets no other process read a locked byte
_AT = 2**20
# further tries, 0.05 s apart
_TRIES = 3
# pause while a holder is waited for
_PAUSE_S = 0.5


def lock_byte(descriptor: int, at: int, *, wait: bool = False) -> bool:
    """Lock one byte of an open file; return False if another process has locked it.

    Args:
        descriptor: Descriptor of the file, open for writing.
        at: Offset of the byte; it need not exist.
        wait: Whether to wait until the other process releases the lock or dies.

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
    """Release a byte that :func:`lock_byte` has locked."""
    if fcntl is not None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, at)
        return
    import msvcrt

    os.lseek(descriptor, at, os.SEEK_SET)
    msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)


def open_lock_file(path: Path) -> int:
    """Open a lock file for writing, creating it if missing; refuse a link, so that nothing is created or written elsewhere.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it must be a regular file", str(path))
    return descriptor


class FolderLock:
    """Keeps other processes of this program out of a folder while one of them writes to it.

    Use it as a context manager. The file ``.lock`` names the process that holds the folder and is removed at the end; if the
    process is killed, the system releases the lock and the file stays for the next one.

    Args:
        folder: Existing folder.
        name: The folder as the user gave it, for messages.
        wait_s: Seconds to wait for another process that holds it, in a job that is started again while its predecessor still
            saves its step, or while a network disk still keeps the lock of a machine that has died.

    Raises:
        UserError: Another process holds the folder and none is waited for, or the folder is not writable.
        RunError: Another process still holds the folder after ``wait_s``.
    """

    def __init__(self, folder: Path, *, name: str, wait_s: float = 0.0) -> None:
        self._name, self._path = name, folder / LOCK
        deadline, told = time.monotonic() + wait_s, False
        while not self._take():
            who = self._holder_in_words()
            os.close(self._descriptor)
            if not wait_s:
                raise UserError(f"{name}: in use. {who}. Wait until it ends, or stop it.")
            if time.monotonic() > deadline:
                raise RunError(
                    f"{name}: still in use after {wait_s:g} s. {who}. Stop it, or delete {self._path} if it is gone with its "
                    "machine; then start again. trainer.timeout_s sets the time."
                )
            if not told:
                show(f"{name}: in use. {who}. Waiting up to {wait_s:g} s for it to end")
                told = True
            time.sleep(min(_PAUSE_S, wait_s))
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, json.dumps(holder).encode())
        except OSError:
            # the lock is effective even if a full disk prevents writing the holder
            return

    def _take(self) -> bool:
        """Open the file and lock it; return False if another process has locked it."""
        while self._open():
            if self._is_there():
                return True
            # the previous holder has just removed this file, so a lock on it would not lock the file that others open
            os.close(self._descriptor)
        return False

    def _open(self) -> bool:
        try:
            self._descriptor = open_lock_file(self._path)
        except OSError as error:
            raise UserError(
                in_words(error, self._path, f"{self._path.name} cannot be written in it", name=self._name)
            ) from error
        try:
            free = lock_byte(self._descriptor, _AT)
            for _ in range(_TRIES):
                if free:
                    break
                # a process that only asks whether the folder is held has the lock for a moment
                time.sleep(0.05)
                free = lock_byte(self._descriptor, _AT)
        except OSError:
            # a file system without locks, such as some network mounts: the holder recorded in the file decides
            free = not self._holder_lives()
        return free

    def _is_there(self) -> bool:
        """Tell whether the open file is the one in the folder."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _holder(self) -> dict[str, object]:
        return holder_in(self._descriptor)

    def _holder_lives(self) -> bool:
        """Tell whether the recorded holder is a living process of this machine; holders on other machines cannot be checked."""
        holder = self._holder()
        pid = holder.get("pid")
        if not isinstance(pid, int) or pid == os.getpid() or holder.get("host") != socket.gethostname():
            return False
        return process_lives(pid)

    def _holder_in_words(self) -> str:
        holder = self._holder()
        for _ in range(20):
            if holder:
                break
            # the holder has the lock but has not recorded itself yet
            time.sleep(0.05)
            holder = self._holder()
        who = "another process"
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')}"
        since = f", since {holder.get('since')}" if holder.get("since") else ""
        return f"{who} is writing there{since}"

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._descriptor < 0:
            return
        # removed while locked, because nobody else can hold it then; Windows cannot remove an open file
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


def is_held(folder: Path) -> bool:
    """Tell whether another process holds a folder, without a change to its lock file.

    Where the file system has no locks, a holder on another machine counts as living.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        if not lock_byte(descriptor, _AT):
            return True
        unlock_byte(descriptor, _AT)
        return False
    except OSError:
        holder = holder_in(descriptor)
        if holder.get("host") != socket.gethostname():
            return "host" in holder
        pid = holder.get("pid")
        return isinstance(pid, int) and process_lives(pid)
    finally:
        os.close(descriptor)


def holder_in(descriptor: int) -> dict[str, object]:
    """Return the process that an open lock file records: its number, host and time; empty if it records none."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 4096))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def remove_left_lock(folder: Path) -> None:
    """Remove the lock file that a killed process left in a folder; leave one that is held, or that cannot be removed."""
    if os.path.lexists(folder / LOCK):
        with contextlib.suppress(UserError), FolderLock(folder, name=str(folder)):
            pass
