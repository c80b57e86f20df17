"""Tensors on disk, one row per image: computed in chunks by one or more processes, checked at every read, limited in size.

Each folder of the cache is one entry: ``meta.json`` describes it, ``data.bin`` holds the rows, ``rows.bin`` the checksum of
each row, and ``chunks.bin`` marks the chunks that are written. A process claims a chunk with a lock that the system releases
when the process dies, so processes share the work without communicating, and an unfinished entry is continued.

numpy's ``open_memmap`` would map the rows, but knows neither which of them are written nor whether they are damaged; those two
files are most of this module. filelock would need a file for each chunk, and locks by ``flock``, see
:mod:`finetune.file_lock`.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.atomic_files import write_json
from finetune.cache_dir import cache_folder
from finetune.errors import FileError
from finetune.file_errors import file_error, file_of
from finetune.file_lock import lock_byte, open_lock_file, unlock_byte
from finetune.plain import Json
from finetune.safe_files import need, read_bytes, read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# how often opening an entry may recreate its files: another process may recreate them with another layout in between
_ATTEMPTS = 3
META, DATA, ROWS, CHUNKS, USED, LOCK = "meta.json", "data.bin", "rows.bin", "chunks.bin", "used", "lock"
# changing this number keeps a version from reading rows that another version wrote with a different meaning
VERSION = 2
_CRC_TYPE, _WRITTEN_TYPE = np.dtype(np.uint32), np.dtype(np.uint8)
_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def features_folder() -> Path | None:
    """Return the folder of the entries, or None if ``FINETUNE_CACHE=off`` disables the cache."""
    return cache_folder("features")


def why_unusable() -> str:
    """Return the reason why no cache is possible, for the plan; empty if it is possible."""
    base = features_folder()
    if base is None:
        return "FINETUNE_CACHE=off"
    if fcntl is None:
        return "this system lacks the file locks that the cache needs"
    at = base
    while not at.exists() and at != at.parent:
        at = at.parent
    if not at.is_dir():
        return f"{base} cannot be a folder: {at} is a file"
    if not os.access(at, os.W_OK | os.X_OK):
        return f"{at} is not writable; choose another place with FINETUNE_CACHE=DIR"
    return ""


def entry_key(parts: Mapping[str, Any]) -> str:
    """Return the name of the entry for the values it is computed from.

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
        shape: Shape of one row.
        dtype: ``float64``, ``float32``, ``float16`` or ``bfloat16``.
        chunk_rows: Largest number of rows computed, checked and claimed together.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """Return the bytes of all rows."""
        return self.rows * self.row_bytes

    @property
    def disk_bytes(self) -> int:
        """Return the bytes that an entry takes on a disk with blocks of 4 KiB."""
        files = (self.bytes, self.rows * _CRC_TYPE.itemsize, self.chunks, 1)  # the last is meta.json
        return sum(-(-size // 4096) * 4096 for size in files)

    @property
    def chunks(self) -> int:
        """Return the number of chunks."""
        return -(-self.rows // self.chunk_rows)

    def rows_of(self, chunk: int) -> range:
        """Return the rows of a chunk; chunks are almost equal in size, as kernels may treat a batch of one differently."""
        return range(self.rows * chunk // self.chunks, self.rows * (chunk + 1) // self.chunks)

    def to_plain(self) -> dict[str, Json]:
        """Return plain JSON values."""
        return {"rows": self.rows, "shape": list(self.shape), "dtype": self.dtype, "chunk_rows": self.chunk_rows}


class Entry:
    """An open entry of the cache; :meth:`close` lets other processes delete it.

    Args:
        folder: Folder of the entry.
        layout: Required size; an entry of another size is started anew.
        about: Description that ``finetune cache list`` shows.

    Raises:
        OSError: The disk has no room for the entry (nothing is left behind), or is not writable.
    """

    def __init__(self, folder: Path, *, layout: Layout, about: Mapping[str, Any]) -> None:
        self.folder, self.layout = folder, layout
        for place in (folder, folder / USED):
            if place.is_symlink():
                # writing must not follow links to what lies elsewhere
                place.unlink(missing_ok=True)
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
        """Create the files under an exclusive lock if they are missing; all processes then keep them open under a shared lock.

        No process waits for the exclusive lock: a process that has the entry open may itself be waiting for this one, as the
        processes of a run do for each other.
        """
        begun = 0
        while True:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            # files that this process wrote and cannot read back would be recreated forever
            if self._fits(must_be_readable=begun > 0):
                return
            if begun == _ATTEMPTS:
                raise FileError(
                    f"{self.folder}: the files of this cache did not read back as written after {_ATTEMPTS} attempts. Check the "
                    "disk, or use another one: FINETUNE_CACHE=FOLDER."
                )
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # another process is creating them; the failed attempt has released this process's shared lock
                time.sleep(0.02)
                continue
            if not self._fits():
                self._begin(about)
                begun += 1

    def _fits(self, *, must_be_readable: bool = False) -> bool:
        """Return whether the files exist and have the right size.

        Raises:
            FileError: The files must be readable, and the disk cannot read them back.
        """
        try:
            meta = read_json(self.folder / META, dict)
            for name in (DATA, ROWS, CHUNKS):
                # writing must not follow links to files elsewhere
                if not stat.S_ISREG((self.folder / name).lstat().st_mode):
                    return False
            sizes = tuple((self.folder / name).stat().st_size for name in (DATA, ROWS, CHUNKS))
        except FileError as error:
            if must_be_readable:
                raise
            log.warning("%s These activations are computed again.", error)
            return False
        except (OSError, ValueError):
            return False
        expected = (self.layout.bytes, self.layout.rows * _CRC_TYPE.itemsize, self.layout.chunks)
        return bool(meta.get("layout") == self.layout.to_plain() and sizes == expected)

    def _begin(self, about: Mapping[str, Any]) -> None:
        for name in (META, CHUNKS, ROWS, DATA):
            (self.folder / name).unlink(missing_ok=True)
        try:
            (self.folder / CHUNKS).write_bytes(bytes(self.layout.chunks))
            (self.folder / ROWS).write_bytes(bytes(self.layout.rows * _CRC_TYPE.itemsize))
            with (self.folder / DATA).open("wb") as file:
                # space is allocated now, so that a full disk is noticed before anything is computed
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
        """Mark chunks as not written if their bytes do not match their checksums."""
        for chunk in np.flatnonzero(self._written):
            rows = self.layout.rows_of(int(chunk))
            if len(self._wrong(np.arange(rows.start, rows.stop), self._data[rows.start : rows.stop])):
                self._written[chunk] = 0

    def _wrong(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the rows whose bytes do not match their checksums."""
        # of a mapped array each row would be a mapped array again, which takes longer than its checksum
        found = np.fromiter(map(zlib.crc32, np.asarray(values)), _CRC_TYPE, len(rows))
        wrong: npt.NDArray[np.int64] = rows[found != self._crcs[rows]]
        return wrong

    @property
    def missing(self) -> list[int]:
        """Return the chunks that no process has written yet."""
        return [int(chunk) for chunk in np.flatnonzero(self._written == 0)]

    def claim(self, chunk: int, *, wait: bool = False) -> bool:
        """Claim a chunk to compute it; return False if it is written or another process has claimed it.

        Args:
            chunk: Number of the chunk.
            wait: Whether to wait until the other process has written the chunk or has died.
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
        """Claim, one after another, the chunks that are not written yet.

        Call this twice: first for the chunks that no process has claimed and, once these are written, for those of other
        processes. A process that waited earlier would hold chunks that others may be waiting for. It would also claim its own
        chunks again and compute those that are still being loaded twice, because locks belong to the process.

        Args:
            wait: Whether to wait for chunks of other processes until they are written or those processes have died.
        """
        for chunk in self.missing:
            if self.claim(chunk, wait=wait):
                yield chunk

    def write(self, chunk: int, values: npt.NDArray[np.uint8]) -> None:
        """Store a claimed chunk.

        Args:
            chunk: Number of the chunk.
            values: Bytes of its rows, (rows, row bytes).
        """
        rows = self.layout.rows_of(chunk)
        self._data[rows.start : rows.stop] = values
        self._crcs[rows.start : rows.stop] = [zlib.crc32(value) for value in np.ascontiguousarray(values)]
        self._written[chunk] = 1
        self._unclaim(chunk)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the bytes of the given rows (len(rows), row bytes), copied and checked against their checksums.

        Raises:
            FileError: The file has changed since it was written; damaged chunks are marked as not written.
        """
        try:
            length = (self.folder / DATA).stat().st_size
        except OSError as error:
            raise self._changed(error.strerror or str(error)) from error
        if length != self.layout.bytes:
            # reading past the end of a mapped file would kill the process
            raise self._changed("its length has changed")
        values: npt.NDArray[np.uint8] = self._data[rows]
        wrong = self._wrong(rows, values)
        if len(wrong):
            for chunk in range(self.layout.chunks):
                if not set(self.layout.rows_of(chunk)).isdisjoint(wrong.tolist()):
                    self._written[chunk] = 0
            raise self._changed(f"row {wrong[0]} differs from what was written")
        return values

    def _changed(self, what: str) -> FileError:
        return FileError(
            f"{self.folder / DATA}: changed or damaged while in use; {what}. It will be computed again at the next start."
        )

    def flush(self) -> None:
        """Write everything to the disk."""
        for array, name in ((self._data, DATA), (self._crcs, ROWS), (self._written, CHUNKS)):
            assert isinstance(array, np.memmap)
            try:
                array.flush()
            except OSError as error:
                raise unusable(error, self.folder / name) from error

    def close(self) -> None:
        """Release the entry's lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An entry as ``finetune cache list`` shows it."""

    folder: Path
    bytes: int
    used: float  # seconds since the epoch
    about: Mapping[str, Json]
    complete: bool


def list_entries(base: Path | None = None) -> list[Listed]:
    """Return all entries, least recently used first."""
    base = base if base is not None else features_folder()
    if base is None or not base.is_dir():
        return []
    entries = []
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
            # creation did not finish, or another process is deleting it
            meta, complete, size, used = {}, False, 0, 0.0
        entries.append(Listed(folder=folder, bytes=size, used=used, about=meta.get("about", {}), complete=complete))
    return sorted(entries, key=lambda entry: entry.used)


def delete(folder: Path) -> bool:
    """Delete an entry, of a link the link alone; return False if a process is using it."""
    try:
        if folder.is_symlink():
            folder.unlink()
            return True
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
    """Delete entries, least recently used first, until they and the new entry together are within the limit.

    Args:
        wanted_bytes: Size of the new entry, in bytes.
        limit_bytes: Limit of the whole cache, in bytes.
        keep: Keys of entries that are not deleted.
        base: Folder of the cache; None uses the user's.

    Returns:
        Folders of the deleted entries.
    """
    entries = list_entries(base)
    total = sum(entry.bytes for entry in entries)
    deleted = []
    for entry in entries:
        if total + wanted_bytes <= limit_bytes:
            break
        if entry.folder.name not in keep and delete(entry.folder):
            total -= entry.bytes
            deleted.append(entry.folder)
    return deleted


def free_bytes(base: Path | None = None) -> int:
    """Return the free bytes on the disk of the cache."""
    at = base if base is not None else features_folder()
    assert at is not None
    while not at.exists():
        at = at.parent
    return shutil.disk_usage(at).free


def open_entry(parts: Mapping[str, Any], *, layout: Layout, about: Mapping[str, Any], limit_bytes: int) -> Entry | None:
    """Open the entry for these parts, creating it if needed; return None if the user has disabled the cache.

    Raises:
        FileError: The entry cannot be written: the disk is full, read-only, or fails.
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
    """Return an error of a cache file with a message that explains how to continue."""
    instead = "Another folder can hold the cache: set FINETUNE_CACHE=FOLDER."
    named = file_of(error)
    if named is not None and path in named.parents:
        path = named
    return file_error(error, path, "the cache could not be written", after=instead) or error


def find_entry(parts: Mapping[str, Any]) -> Entry | None:
    """Open the complete entry for these parts, or return None if there is none."""
    base = features_folder()
    folder = None if base is None else base / entry_key(parts)
    if folder is None or not os.path.lexists(folder / META):
        return None
    try:
        meta = read_json(folder / META, dict)
        need(meta, {"about": dict, "layout": dict}, name=str(folder / META))
        layout = Layout(**{**meta["layout"], "shape": tuple(meta["layout"]["shape"])})
        entry = Entry(folder, layout=layout, about=meta["about"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError):
        return None
    if entry.missing:
        entry.close()
        return None
    return entry
