"""Tensors on disk, one row an image: computed in chunks by one or several processes, checked at every read, kept by size.

A folder of the cache is one entry: ``meta.json`` says what it holds, ``data.bin`` the rows, ``rows.bin`` the checksum of each,
``chunks.bin`` which chunks are written. A chunk is claimed by a lock that the system takes back when its process dies, so
processes share the work without talking to each other, and a half-done entry is gone on with.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.atomic_files import write_json
from finetune.cache_dir import cache_folder
from finetune.errors import FileError, RunError
from finetune.file_errors import file_error, file_of
from finetune.file_lock import lock_byte, open_lock_file, unlock_byte
from finetune.safe_files import need, read_bytes, read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

META, DATA, ROWS, CHUNKS, USED, LOCK = "meta.json", "data.bin", "rows.bin", "chunks.bin", "used", "lock"
# what a row means must not be read out of files of another version
VERSION = 2
_CRC_TYPE, _WRITTEN_TYPE = np.dtype(np.uint32), np.dtype(np.uint8)
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def features_folder() -> Path | None:
    """Where entries lie, or None where ``FINETUNE_CACHE=off`` says that the user wants no cache."""
    return cache_folder("features")


def why_unusable() -> str:
    """Why there can be no cache, for the plan; empty where there can be one."""
    base = features_folder()
    if base is None:
        return "FINETUNE_CACHE=off"
    if fcntl is None:
        return "this system has no locks of the kind that the cache needs"
    at = base
    while not at.exists() and at != at.parent:
        at = at.parent
    if not at.is_dir():
        return f"{base} cannot be a folder: {at} is a file"
    if not os.access(at, os.W_OK | os.X_OK):
        return f"{at} cannot be written; FINETUNE_CACHE=DIR names another place"
    return ""


def entry_key(parts: Mapping[str, Any]) -> str:
    """Name of the entry for what it was computed from.

    >>> entry_key({"a": 1, "b": 2}) == entry_key({"b": 2, "a": 1})
    True
    """
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Size of an entry.

    Args:
        rows: Number of rows.
        shape: Of one row.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        chunk_rows: Rows computed, checked and claimed together, at most.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes that an entry takes on a disk, whose blocks have 4 KiB."""
        files = (self.bytes, self.rows * _CRC_TYPE.itemsize, self.chunks, 1)  # the last is meta.json
        return sum(-(-size // 4096) * 4096 for size in files)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.chunk_rows)

    def rows_of(self, chunk: int) -> range:
        """The rows of a chunk: chunks are nearly equal, because kernels may treat a batch of one in a way of their own."""
        return range(self.rows * chunk // self.chunks, self.rows * (chunk + 1) // self.chunks)

    def to_plain(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"rows": self.rows, "shape": list(self.shape), "dtype": self.dtype, "chunk_rows": self.chunk_rows}


class Entry:
    """One opened entry; :meth:`close` lets others delete it.

    Args:
        folder: Of the entry.
        layout: What it must hold; an entry that holds something else is begun anew.
        about: Said by ``finetune cache list``.

    Raises:
        OSError: The disk has no room for it (nothing is left behind), or cannot be written.
    """

    def __init__(self, folder: Path, *, layout: Layout, about: Mapping[str, Any]) -> None:
        self.folder, self.layout = folder, layout
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open_lock_file(folder / LOCK)
        try:
            self._open_together(about)
            (folder / USED).touch()
            self._data: npt.NDArray[np.uint8] = np.memmap(
                folder / DATA, np.uint8, "r+", shape=(layout.rows, layout.row_bytes)
            )
            self._crcs: npt.NDArray[np.uint32] = np.memmap(folder / ROWS, _CRC_TYPE, "r+", shape=(layout.rows,))
            self._written: npt.NDArray[np.uint8] = np.memmap(
                folder / CHUNKS, _WRITTEN_TYPE, "r+", shape=(layout.chunks,)
            )
        except BaseException:
            os.close(self._lock)
            raise
        self._check()

    def _open_together(self, about: Mapping[str, Any]) -> None:
        """Whoever makes the files must be alone; afterwards everybody holds them open together.

        Nobody waits to be alone: a process that holds the entry open may itself be waiting for this one, as the processes
        of a run do for one another.
        """
        while True:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            if self._fits():
                return
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # another process is making them; the failed attempt has given this one's share of the lock up
                time.sleep(0.02)
                continue
            if not self._fits():
                self._begin(about)

    def _fits(self) -> bool:
        try:
            meta = read_json(self.folder / META, dict)
            for name in (DATA, ROWS, CHUNKS):
                # what is written into must be the cache's own, and no link to a file elsewhere
                if not stat.S_ISREG((self.folder / name).lstat().st_mode):
                    return False
            sizes = tuple((self.folder / name).stat().st_size for name in (DATA, ROWS, CHUNKS))
        except FileError as error:
            log.warning("warning: %s What the cache holds there is computed again.", error)
            return False
        except (OSError, ValueError):
            return False
        wanted = (self.layout.bytes, self.layout.rows * _CRC_TYPE.itemsize, self.layout.chunks)
        return bool(meta.get("layout") == self.layout.to_plain() and sizes == wanted)

    def _begin(self, about: Mapping[str, Any]) -> None:
        for name in (META, CHUNKS, DATA):
            (self.folder / name).unlink(missing_ok=True)
        try:
            (self.folder / CHUNKS).write_bytes(bytes(self.layout.chunks))
            (self.folder / ROWS).write_bytes(bytes(self.layout.rows * _CRC_TYPE.itemsize))
            with (self.folder / DATA).open("wb") as file:
                # room is taken now: a disk that is too full is found before anything is computed
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self.layout.bytes)
                else:
                    file.truncate(self.layout.bytes)
            write_json(self.folder / META, {"layout": self.layout.to_plain(), "about": dict(about)})
        except BaseException:
            for name in (META, CHUNKS, ROWS, DATA):
                (self.folder / name).unlink(missing_ok=True)
            raise

    def _check(self) -> None:
        """Chunks whose bytes are not those that were written count as not written."""
        for chunk in np.flatnonzero(self._written):
            rows = self.layout.rows_of(int(chunk))
            if self._wrong(range(rows.start, rows.stop), self._data[rows.start : rows.stop]):
                self._written[chunk] = 0

    def _wrong(self, rows: Iterable[int], values: npt.NDArray[np.uint8]) -> list[int]:
        """The rows whose bytes are not those that were written."""
        return [row for row, value in zip(rows, values, strict=True) if zlib.crc32(value) != self._crcs[row]]

    @property
    def missing(self) -> list[int]:
        """Chunks that nobody has written yet."""
        return [int(chunk) for chunk in np.flatnonzero(self._written == 0)]

    def claim(self, chunk: int, *, wait: bool = False) -> bool:
        """Take a chunk to compute it; False where it is written, or another process is at it.

        Args:
            chunk: Its number.
            wait: Wait until the other process has written it or has died.
        """
        if not lock_byte(self._lock, chunk, wait=wait):
            return False
        if self._written[chunk]:
            self._unclaim(chunk)
            return False
        return True

    def _unclaim(self, chunk: int) -> None:
        unlock_byte(self._lock, chunk)

    def claimed(self, *, wait: bool = False) -> Iterator[int]:
        """Claims chunk after chunk of those that nobody has written.

        Called twice: first for the chunks that nobody is at, and, once these are written, for those of others. A process
        that waited earlier would hold chunks that the others may be waiting for. And its own would be free to it, since the
        lock is of the process: a chunk that is still being loaded would be claimed, and computed, again.

        Args:
            wait: For the chunks of others, until they are written or the others have died.
        """
        for chunk in self.missing:
            if self.claim(chunk, wait=wait):
                yield chunk

    def write(self, chunk: int, values: npt.NDArray[np.uint8]) -> None:
        """Store a claimed chunk.

        Args:
            chunk: Its number.
            values: The bytes of its rows (rows, row bytes).
        """
        rows = self.layout.rows_of(chunk)
        self._data[rows.start : rows.stop] = values
        self._crcs[rows.start : rows.stop] = [zlib.crc32(value) for value in np.ascontiguousarray(values)]
        self._written[chunk] = 1
        self._unclaim(chunk)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Bytes of some rows (len(rows), row bytes), copied and compared with their checksums.

        Raises:
            RunError: The file has been changed since they were written; what is wrong counts as not written.
        """
        try:
            length = (self.folder / DATA).stat().st_size
        except OSError as error:
            raise self._changed(error.strerror or str(error)) from error
        if length != self.layout.bytes:
            # reading behind the end of a mapped file would kill the process
            raise self._changed("its length is another")
        values: npt.NDArray[np.uint8] = self._data[rows]
        wrong = self._wrong(rows.tolist(), values)
        if wrong:
            for chunk in range(self.layout.chunks):
                if not set(self.layout.rows_of(chunk)).isdisjoint(wrong):
                    self._written[chunk] = 0
            raise self._changed(f"row {wrong[0]} is not what was written")
        return values

    def _changed(self, what: str) -> RunError:
        return RunError(
            f"{self.folder / DATA}: changed or damaged while it was in use; {what}. It is computed again at the next start. "
            "Go on with: finetune resume RUN"
        )

    def flush(self) -> None:
        """To the disk."""
        for array, name in ((self._data, DATA), (self._crcs, ROWS), (self._written, CHUNKS)):
            assert isinstance(array, np.memmap)
            try:
                array.flush()
            except OSError as error:
                raise unusable(error, self.folder / name) from error

    def close(self) -> None:
        """Let go of the entry."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An entry as ``finetune cache list`` shows it."""

    folder: Path
    bytes: int
    used: float  # seconds since the epoch
    about: dict[str, Any]
    complete: bool


def listed(base: Path | None = None) -> list[Listed]:
    """All entries, the one used longest ago first."""
    base = base if base is not None else features_folder()
    if base is None or not base.is_dir():
        return []
    found = []
    for folder in base.iterdir():
        try:
            size = sum(file.stat().st_blocks * 512 for file in folder.iterdir())
            used = (folder / USED).stat().st_mtime if (folder / USED).exists() else folder.stat().st_mtime
            meta = read_json(folder / META, dict)
            need(meta, {"about": dict, "layout": dict}, name=str(folder / META))
            complete = bool(np.frombuffer(read_bytes(folder / CHUNKS), _WRITTEN_TYPE).all())
        except NotADirectoryError:
            continue
        except (OSError, ValueError):
            # begun and never finished beginning, or being deleted by another process
            meta, complete, size, used = {}, False, 0, 0.0
        found.append(Listed(folder=folder, bytes=size, used=used, about=meta.get("about", {}), complete=complete))
    return sorted(found, key=lambda entry: entry.used)


def delete(folder: Path) -> bool:
    """Delete an entry; False where a process is using it."""
    try:
        lock = open_lock_file(folder / LOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def make_room(wanted_bytes: int, *, limit_bytes: int, keep: Sequence[str] = (), base: Path | None = None) -> list[Path]:
    """Delete entries, the one used longest ago first, until all of them and the wanted one stay below the limit.

    Args:
        wanted_bytes: Of the new entry.
        limit_bytes: Of the whole cache.
        keep: Keys that are not deleted.
        base: Of the cache.

    Returns:
        What was deleted.
    """
    entries = listed(base)
    total = sum(entry.bytes for entry in entries)
    gone = []
    for entry in entries:
        if total + wanted_bytes <= limit_bytes:
            break
        if entry.folder.name not in keep and delete(entry.folder):
            total -= entry.bytes
            gone.append(entry.folder)
    return gone


def free_bytes(base: Path | None = None) -> int:
    """Room on the disk of the cache."""
    at = base if base is not None else features_folder()
    assert at is not None
    while not at.exists():
        at = at.parent
    return shutil.disk_usage(at).free


def opened(
    parts: Mapping[str, Any], *, layout: Layout, about: Mapping[str, Any], limit_bytes: int, say: Callable[[str], None]
) -> Entry | None:
    """The entry for these parts, made where there is none; None where the user wants no cache.

    Raises:
        FileError: It cannot be written: the disk has no room, is read-only, or fails.
    """
    base = features_folder()
    if base is None:
        return None
    key = entry_key(parts)
    if not (base / key / META).is_file():
        make_room(layout.disk_bytes, limit_bytes=limit_bytes, keep=[key], base=base)
    try:
        return Entry(base / key, layout=layout, about={**about, "created": time.time()})
    except (OSError, FileError) as error:
        raise unusable(error, base / key) from error


def unusable(error: Exception, path: Path) -> Exception:
    """The error of a cache file as a message that says how to go on."""
    instead = "The run can go on with another cache: FINETUNE_CACHE=FOLDER finetune resume RUN."
    named = file_of(error)
    if named is not None and path in named.parents:
        path = named
    return file_error(error, path, "the cache could not be written", after=instead) or error


def existing(parts: Mapping[str, Any]) -> Entry | None:
    """The whole entry for these parts, where there is one."""
    base = features_folder()
    folder = None if base is None else base / entry_key(parts)
    if folder is None or not os.path.lexists(folder / META):
        return None
    try:
        found = read_json(folder / META, dict)
        need(found, {"about": dict, "layout": dict}, name=str(folder / META))
        layout = Layout(**{**found["layout"], "shape": tuple(found["layout"]["shape"])})
        entry = Entry(folder, layout=layout, about=found["about"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError):
        return None
    if entry.missing:
        entry.close()
        return None
    return entry
