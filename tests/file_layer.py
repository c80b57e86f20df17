"""Records what a process does to the files below a folder, or makes its n-th file operation fail.

Two layers do it. ``tests/file_layer.c``, compiled by ``cc`` and loaded with ``LD_PRELOAD``, lies under every library: Python,
torch and safetensors' Rust. Where there is no compiler, :class:`PythonLayer` takes what Python shows of itself: its audit
events, which name what is about to be opened, renamed or removed, ``os.fsync``, and NumPy's ``flush`` of mapped files; writes
are found by looking at the folder at each event.
"""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

SOURCE = Path(__file__).with_suffix(".c")
COMPILED = "FINETUNE_FILE_LAYER"


class Kind(IntFlag):
    """Kinds of operations that can be made to fail; the order is that of the enum in ``file_layer.c``."""

    OPEN_READ = 1
    OPEN_WRITE = 2
    READ = 4
    WRITE = 8
    ALLOCATE = 16
    SYNC = 32
    RENAME = 64
    UNLINK = 128
    MKDIR = 256
    MMAP = 512
    MEMORY = 1024


@dataclass(frozen=True)
class Operation:
    """One change of the files below a folder.

    Args:
        kind: ``create``, ``open``, ``truncate``, ``write``, ``resize``, ``mapped`` (the contents of a mapped file changed),
            ``sync``, ``rename``, ``link``, ``unlink``, ``mkdir`` or ``mark``.
        path: Relative to the folder.
        inode: Number of the file.
        path2: New name of a rename or a link.
        offset: Of a write; the new size of a resize.
        data: Bytes of a write, all bytes of a mapped file, text of a mark.
    """

    kind: str
    path: str
    inode: int = 0
    path2: str = ""
    offset: int = 0
    data: bytes = b""


class Layer(Protocol):
    """What both layers can do."""

    name: str

    def record(self, folder: Path, log: Path) -> None:
        """Record from now on."""

    def mark(self, text: str) -> None:
        """Put a mark among the operations."""

    def fail(
        self, folder: Path, kind: Kind, *, number: int, error: int, for_good: bool = False, least_bytes: int = 0
    ) -> None:
        """Count operations from now on; this one of a kind fails (and with ``for_good`` all of the kind after it)."""

    def counted(self, kind: Kind) -> int:
        """Number of operations of a kind since :meth:`fail`."""

    def failed(self) -> str:
        """Path whose operation was the first to fail; empty where none was."""

    def stop(self) -> None:
        """Do nothing any more."""


def compile_layer(folder: Path) -> Path | None:
    """The compiled layer; None where there is no compiler, or not this kind of system."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "file_layer.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # a compiler without the C library's headers is as good as none
    return library if done.returncode == 0 else None


def environment(library: Path | None) -> dict[str, str]:
    """For a process that is to run upon the layer."""
    if library is None:
        return {name: value for name, value in os.environ.items() if name != COMPILED}
    return {**os.environ, "LD_PRELOAD": str(library), COMPILED: str(library)}


def layer_of_this_process() -> Layer:
    """The compiled layer where this process was started upon it, else Python's."""
    library = os.environ.get(COMPILED)
    return CompiledLayer(library) if library else PythonLayer()


class CompiledLayer:
    """Drives ``file_layer.c``."""

    name = "the C library's functions"

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.file_layer_failed.restype = ctypes.c_char_p
        self._library.file_layer_counted.restype = ctypes.c_long
        self._library.file_layer_fail.argtypes = [
            *(ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_size_t)
        ]

    def record(self, folder: Path, log: Path) -> None:
        """Record from now on."""
        self._library.file_layer_record(os.fsencode(folder), os.fsencode(log))

    def mark(self, text: str) -> None:
        """Put a mark among the operations."""
        self._library.file_layer_mark(text.encode())

    def fail(
        self, folder: Path, kind: Kind, *, number: int, error: int, for_good: bool = False, least_bytes: int = 0
    ) -> None:
        """Count, and fail at a number."""
        self._library.file_layer_fail(os.fsencode(folder), int(kind), number, error, for_good, least_bytes)

    def counted(self, kind: Kind) -> int:
        """Number of operations of a kind."""
        return int(self._library.file_layer_counted(int(kind).bit_length() - 1))

    def failed(self) -> str:
        """Path that failed first."""
        return os.fsdecode(self._library.file_layer_failed())

    def stop(self) -> None:
        """Do nothing any more."""
        self._library.file_layer_stop()


class PythonLayer:
    """Audit events and ``os.fsync``; a hook cannot be removed, so it does nothing while it is switched off."""

    name = "Python's audit events"
    _KINDS: ClassVar = {
        "os.rename": Kind.RENAME,
        "os.link": Kind.RENAME,
        "os.remove": Kind.UNLINK,
        "os.rmdir": Kind.UNLINK,
        "os.mkdir": Kind.MKDIR,
    }

    def __init__(self) -> None:
        self._folder: str | None = None
        self._log: Any = None
        self._kind, self._number, self._error, self._for_good = Kind(0), -1, 0, False
        self._counts: Counter[Kind] = Counter()
        self._failed = ""
        self._busy = False
        self._known: dict[str, tuple[int, tuple[int, int], bytes]] = {}
        sys.addaudithook(self._hear)
        self._fsync, self._flush = os.fsync, np.memmap.flush
        os.fsync = self._synced
        np.memmap.flush = lambda array: self._flushed(array)

    def record(self, folder: Path, log: Path) -> None:
        """Record from now on."""
        self._folder, self._log = str(folder), log.open("ab", buffering=0)
        self._known = dict(self._scan())

    def mark(self, text: str) -> None:
        """Put a mark among the operations."""
        if self._log is not None:
            self._look()
            self._put(Operation("mark", "", data=text.encode()))

    def fail(
        self, folder: Path, kind: Kind, *, number: int, error: int, for_good: bool = False, least_bytes: int = 0
    ) -> None:
        """Count, and fail at a number."""
        self._folder, self._kind, self._number, self._error = str(folder), kind, number, error
        self._for_good, self._counts, self._failed = for_good, Counter(), ""

    def counted(self, kind: Kind) -> int:
        """Number of operations of a kind."""
        return self._counts[kind]

    def failed(self) -> str:
        """Path that failed first."""
        return self._failed

    def stop(self) -> None:
        """Do nothing any more."""
        if self._log is not None:
            self._look()
            self._log.close()
        self._folder, self._log, self._kind = None, None, Kind(0)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if self._folder is None or self._busy or not given or not isinstance(given[0], (str, bytes, os.PathLike)):
            return
        kind = self._KINDS.get(event)
        if event == "open":
            writes = given[2] is not None and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            kind = Kind.OPEN_WRITE if writes else Kind.OPEN_READ
        if kind is None:
            return
        path = os.path.abspath(os.fsdecode(given[1] if kind is Kind.RENAME else given[0]))
        if not path.startswith(self._folder):
            return
        if self._log is not None:
            self._look()
        if kind is Kind.UNLINK and not os.path.lexists(path):
            return
        self._maybe_fail(kind, path)

    def _synced(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}") if self._folder is not None else ""
        if self._folder is None or not path.startswith(self._folder):
            self._fsync(descriptor)
            return
        self._sync(path, os.fstat(descriptor).st_ino)

    def _flushed(self, array: np.memmap[Any, Any]) -> None:
        path = str(array.filename)
        self._flush(array)
        if self._folder is not None and path.startswith(self._folder):
            self._sync(path, os.stat(path).st_ino)

    def _sync(self, path: str, inode: int) -> None:
        assert self._folder is not None
        self._maybe_fail(Kind.SYNC, path)
        if self._log is not None:
            self._look()
            relative = os.path.relpath(path, self._folder)
            self._put(Operation("sync", "" if relative == "." else relative, inode=inode))

    def _maybe_fail(self, kind: Kind, path: str) -> None:
        number = self._counts[kind]
        self._counts[kind] += 1
        if (
            kind is self._kind
            and self._number >= 0
            and (number >= self._number if self._for_good else number == self._number)
        ):
            self._failed = self._failed or path
            raise OSError(self._error, os.strerror(self._error), path)

    def _scan(self) -> Iterator[tuple[str, tuple[int, tuple[int, int], bytes]]]:
        assert self._folder is not None
        self._busy = True
        try:
            for folder, folders, files in os.walk(self._folder):
                for name in sorted([*folders, *files]):
                    path = os.path.join(folder, name)
                    relative, status = os.path.relpath(path, self._folder), os.lstat(path)
                    if name in folders:
                        yield relative, (0, (0, 0), b"")
                    else:
                        stamp = (status.st_size, status.st_mtime_ns)
                        # a mapped file changes without a change of its time
                        yield relative, (status.st_ino, stamp, Path(path).read_bytes())
        finally:
            self._busy = False

    def _look(self) -> None:
        """Find what has changed since the last look."""
        now = dict(self._scan())
        old = {inode: path for path, (inode, _, _) in self._known.items() if inode}
        moved = set()
        for path, (inode, _, data) in now.items():
            before = self._known.get(path)
            if inode == 0:
                if before is None:
                    self._put(Operation("mkdir", path))
            elif before is None or before[0] != inode:
                was = old.get(inode)
                if was is not None and was not in now:
                    self._put(Operation("rename", was, inode=inode, path2=path))
                    moved.add(was)
                    if self._known[was][2] != data:
                        self._put(Operation("mapped", path, inode=inode, data=data))
                else:
                    if before is not None:
                        self._put(Operation("unlink", path, inode=before[0]))
                    self._put(Operation("create", path, inode=inode))
                    self._put(Operation("write", path, inode=inode, data=data))
            elif before[2] != data:
                self._put(Operation("mapped", path, inode=inode, data=data))
        for path in sorted(set(self._known) - set(now) - moved, reverse=True):
            self._put(Operation("unlink", path, inode=self._known[path][0]))
        self._known = now

    def _put(self, operation: Operation) -> None:
        paths = [os.path.join(self._folder or "", operation.path)]
        if operation.path2:
            paths.append(os.path.join(self._folder or "", operation.path2))
        head = f"{operation.kind} 0 {operation.inode} 0 {operation.offset} {len(operation.data)} "
        self._log.write(os.fsencode(head + "\t".join(paths) + "\n") + operation.data)


def read_log(log: Path, folder: Path) -> list[Operation]:
    """The recorded operations, in their order."""
    found, at, content = [], 0, log.read_bytes()
    while at < len(content):
        end = content.index(b"\n", at)
        kind, _, inode, _, offset, length, paths = os.fsdecode(content[at:end]).split(" ", 6)
        relative = [os.path.relpath(path, folder) for path in paths.split("\t")]
        path, path2 = ["" if name == "." else name for name in (*relative, ".")[:2]]
        at = end + 1 + int(length)
        found.append(Operation(kind, path, int(inode), path2, int(offset), content[end + 1 : at]))
    return found


def named(error: int) -> str:
    """Name of an errno, for tables."""
    return errno.errorcode[error]
