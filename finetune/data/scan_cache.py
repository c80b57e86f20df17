"""The scan cache: facts of images kept between runs, one cache file per data set, in the user's cache.

An entry is valid while the file's path, size, inode, and times of modification and of change of status are the same. So a
file is opened again if it was replaced by one of its size and date. A file changed less than two seconds
before the cache was written is not stored, because a second change in the same clock tick would not be noticed, nor is one that
could not be read, because the reason may lie outside of it.
Of processes that start together, as those of torchrun do, one scans, and the others wait and read what it has kept.
``FINETUNE_CACHE`` names another cache folder; ``off`` turns the cache off.
"""

import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.atomic_files import atomic_path
from finetune.cache_dir import cache_folder
from finetune.data.image_file import MAX_PIXELS
from finetune.data.path_table import PathTable
from finetune.data.scan import FACT_TYPE, Facts, scan_files
from finetune.errors import FileError
from finetune.file_lock import lock_byte, open_lock_file
from finetune.safe_files import check_zip, open_regular, parse_json

log = logging.getLogger(__name__)

# increase it when the meaning of a fact changes, so that old files are not read
_VERSION = 11
_SETTLED_NS = 2_000_000_000

# hash of the path, size in bytes, times of modification and of change of status in ns, inode
STAMP_TYPE = np.dtype(
    [("path", np.uint64), ("size", np.int64), ("changed", np.int64), ("status", np.int64), ("inode", np.uint64)]
)


def cached_facts(root: str, paths: PathTable, *, max_pixels: int = MAX_PIXELS) -> Facts:
    """Return the facts of all files, opening only those that are new or changed since the last scan."""
    return cached_facts_by(
        lambda rows: scan_files(root, paths, rows, max_pixels=max_pixels),
        _stamps(root, paths),
        name=f"{max_pixels}\0{root}",
    )


def cached_facts_by(
    scan_rows: Callable[[npt.NDArray[np.int64]], Facts], stamps: npt.NDArray[np.void], *, name: str
) -> Facts:
    """Return the facts of all images, gathering those whose stamps are new.

    Where another process is gathering those of the same data set into the same cache, this one waits for what it keeps.

    Args:
        scan_rows: Returns the facts of some rows, in their order.
        stamps: Stamp of each image, array of ``STAMP_TYPE`` (N,).
        name: Name of the data set, the same from run to run.
    """
    folder = cache_folder("facts")
    if folder is None:
        return _facts_by(scan_rows, stamps, file=None)
    key = _file_key(name)
    with _alone(key):
        return _facts_by(scan_rows, stamps, file=folder / f"{key}.npz")


@contextmanager
def _alone(key: str) -> Iterator[None]:
    """Let one process at a time run the block for the same data set; all at once where the file system has no locks."""
    lock = cache_folder("facts.lock")
    assert lock is not None, "asked only where there is a cache"
    descriptor = None
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock_file(lock)
        # two data sets that share a byte only wait for each other
        at = int(key[:7], 16)
        if not lock_byte(descriptor, at):
            log.info("another process is checking these images; waiting for it")
            lock_byte(descriptor, at, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _facts_by(
    scan_rows: Callable[[npt.NDArray[np.int64]], Facts], stamps: npt.NDArray[np.void], *, file: Path | None
) -> Facts:
    """Return the facts of all images, those of unchanged ones from the cache file."""
    cached = None if file is None else _load(file)
    table = np.zeros(len(stamps), FACT_TYPE)
    problems: dict[str, int] = {}
    fresh = np.ones(len(stamps), np.bool_)
    if cached is not None:
        old_stamps, old = cached
        problems = {reason: code for code, reason in enumerate(old.problems, start=1)}
        order = np.argsort(old_stamps["path"], kind="stable")
        place = np.searchsorted(old_stamps["path"], stamps["path"], sorter=order)
        candidate = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros(len(stamps), np.int64)
        if len(order):
            fresh = old_stamps[candidate] != stamps
            table[~fresh] = old.table[candidate[~fresh]]
    rows = np.flatnonzero(fresh)
    if len(rows):
        new = scan_rows(rows)
        # codes of new problems follow those in the cache
        codes = np.array([0, *(problems.setdefault(reason, len(problems) + 1) for reason in new.problems)], np.uint32)
        table[rows] = new.table
        table["problem"][rows] = codes[new.table["problem"]]
    facts = Facts(table, tuple(problems))
    if file is not None and (len(rows) or cached is None or len(cached[0]) != len(stamps)):
        _save(file, stamps, facts)
    return facts


def _file_key(name: str) -> str:
    return hashlib.blake2b(f"{_VERSION}\0{name}".encode(errors="surrogateescape"), digest_size=12).hexdigest()


def _stamps(root: str, paths: PathTable) -> npt.NDArray[np.void]:
    """Return the stamp of each file; its size is -1 if it cannot be read."""
    stamps = np.zeros(len(paths), STAMP_TYPE)
    for row in range(len(paths)):
        path = paths[row]
        key = int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")
        stamps[row] = (key, *file_stamp(os.path.join(root, path)))
    return stamps


def file_stamp(path: str) -> tuple[int, int, int, int]:
    """Return a file's size, times of modification and of change of status, and inode; the size is -1 if it cannot be read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a path may hold a null byte
        return (-1, 0, 0, 0)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _load(file: Path) -> tuple[npt.NDArray[np.void], Facts] | None:
    """Read stamps and facts of the last scan; return None if the cache file is missing, or unreadable, which is logged."""
    try:
        # opened here, because numpy leaves a damaged file open
        check_zip(file)  # the cache's own files are not compressed; a compressed one may unpack to any size
        with open_regular(file) as opened, np.load(opened, allow_pickle=False) as arrays:
            stamps, table, problems = arrays["stamps"], arrays["table"], arrays["problems"]
        reasons = parse_json(problems.tobytes(), list, name=str(file))
    except FileError as error:
        log.warning("%s The images are opened again.", error)
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        EOFError,
        MemoryError,
        TypeError,
        AttributeError,
    ):
        return None
    if stamps.dtype != STAMP_TYPE or table.dtype != FACT_TYPE or len(stamps) != len(table):
        return None
    if not all(isinstance(reason, str) for reason in reasons) or (table["problem"] > len(reasons)).any():
        return None
    return stamps, Facts(table, tuple(reasons))


def _save(file: Path, stamps: npt.NDArray[np.void], facts: Facts) -> None:
    """Write the cache file atomically; if that fails, log a warning and continue without it."""
    settled = stamps["changed"] < time.time_ns() - _SETTLED_NS
    settled &= stamps["size"] >= 0
    # what could not be read may be readable next time: by a library installed since, or once the disk answers again
    settled &= facts.table["problem"] == 0
    try:
        with atomic_path(file) as part, part.open("wb") as target:
            problems = np.frombuffer(json.dumps(facts.problems).encode(), np.uint8)
            np.savez(target, stamps=stamps[settled], table=facts.table[settled], problems=problems)
    except FileError as error:
        log.warning("%s The images will be opened again next time.", error)
