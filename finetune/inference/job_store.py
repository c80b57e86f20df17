"""Finished rows of a long job, kept in SQLite so that a job that was killed goes on where it stopped."""

import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from finetune.errors import UserError
from finetune.safe_files import check_regular

SUFFIX = ".job"
# of a text or a row's numbers, in bytes
LARGEST_VALUE = 64 * 2**20
_TABLES = {
    "job": "CREATE TABLE job (settings TEXT)",
    "rows": "CREATE TABLE rows (position INTEGER PRIMARY KEY, path BLOB, stamp TEXT, error BLOB, result TEXT, data BLOB)",
}
# what SQLite keeps beside its file while it is open, or after a kill
_SIDE_FILES = ("-wal", "-shm", "-journal")

Item = TypeVar("Item")


def job_path(output: Path) -> Path:
    """Return where the rows wait until the output is whole."""
    return output.with_name(f".{output.name}{SUFFIX}")


def file_stamp(path: str) -> str:
    """Return size and modification time of a file, empty where there is none; a row is made again when they change."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One finished item.

    Args:
        path: Name of the item.
        stamp: :func:`file_stamp` of its file, taken before the file was read.
        error: Why the item could not be read; empty where it could.
        result: What the job computed, as a JSON value.
        data: Numbers of the result as raw bytes.
    """

    path: str
    stamp: str
    error: str = ""
    result: Any = None
    data: bytes = b""


class _OtherTablesError(Exception):
    """The file is a database, and not of a job."""


def _any_row(row: JobRow) -> bool:
    return True


class JobStore:
    """Rows of one job. A batch is committed as a whole; no second process can open the file meanwhile.

    Args:
        path: The file; made where it is missing.
        settings: Everything that the rows depend on. Rows of other settings are discarded.
        batch_size: Rows that are computed together.

    Attributes:
        discarded: Whether there were rows of other settings.

    Raises:
        UserError: Another process has the file open, or the folder cannot be written to.
    """

    def __init__(self, path: Path, *, settings: dict[str, Any], batch_size: int) -> None:
        self.path = path
        self.batch_size = batch_size
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            # SQLite would wait for a pipe, read a device, and write where a link leads
            if path.is_symlink():
                raise UserError(f"{path}: must be an ordinary file, and is a link. Delete it, and the job begins anew.")
            check_regular(path)
        wanted = json.dumps(settings, sort_keys=True)
        try:
            self._connection = _open(path)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                why = "another process is writing this output. Wait for it, or give another --output."
                raise UserError(f"{path}: {why}") from None
            raise UserError(f"{path.parent}: nothing can be written there. {error}.") from None
        except (sqlite3.DatabaseError, _OtherTablesError):  # not a database, a damaged one, or somebody else's
            self.remove_files()
            self._connection = _open(path)
        stored = self._connection.execute("SELECT settings FROM job").fetchone()
        self.discarded = stored is not None and stored[0] != wanted
        if stored is None or self.discarded:
            with self._connection:
                self._connection.execute("DELETE FROM rows")
                self._connection.execute("DELETE FROM job")
                self._connection.execute("INSERT INTO job VALUES (?)", (wanted,))

    def __enter__(self) -> "JobStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def resume(
        self, items: Iterable[Item], path_of: Callable[[Item], str], *, is_whole: Callable[[JobRow], bool] = _any_row
    ) -> tuple[Iterator[Item], int]:
        """Keep the rows whose items and files are the same as before, and drop the rest.

        Whole batches are kept: the remaining batches are then those of an uninterrupted job, and with them the last digits
        of its results.

        Args:
            items: All of the job, in order.
            path_of: Name of an item.
            is_whole: Whether a row is one that the job writes: the file may be somebody else's.

        Returns:
            The items still to do, and the number of rows that are kept.
        """
        items, kept, waiting = iter(items), 0, list[Item]()
        for row in self._rows_before_a_damaged_one():
            item = next(items, None)
            if item is None:
                break
            waiting.append(item)
            path = path_of(item)
            if (row.path, row.stamp) != (path, file_stamp(path)) or not is_whole(row):
                break
            if len(waiting) == self.batch_size:
                kept += len(waiting)
                waiting.clear()
        with self._connection:
            self._connection.execute("DELETE FROM rows WHERE position < 0 OR position >= ?", (kept,))
        return itertools.chain(waiting, items), kept

    def append(self, rows: Sequence[JobRow]) -> None:
        """Add the rows of a batch; they survive a kill from here on."""
        start = self._connection.execute("SELECT coalesce(max(position) + 1, 0) FROM rows").fetchone()[0]
        with self._connection:
            self._connection.executemany(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (start + number, _encode(row.path), row.stamp, _encode(row.error), json.dumps(row.result), row.data)
                    for number, row in enumerate(rows)
                ),
            )

    def rows(self) -> Iterator[JobRow]:
        """Yield all rows from the first; :meth:`resume` has dropped those that are none.

        Raises:
            UserError: The file is damaged.
        """
        try:
            yield from self._rows()
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from None

    def _rows(self) -> Iterator[JobRow]:
        query = "SELECT position, path, stamp, error, result, data FROM rows ORDER BY position"
        try:
            for number, (position, path, stamp, error, result, data) in enumerate(self._connection.execute(query)):
                blobs = isinstance(path, bytes) and isinstance(error, bytes) and isinstance(data, bytes)
                if position != number or not (blobs and isinstance(stamp, str) and isinstance(result, str)):
                    raise ValueError(f"row {number} is of other types")
                yield JobRow(
                    path=_decode(path), stamp=stamp, error=_decode(error), result=json.loads(result), data=data
                )
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # the disk, perhaps
                raise
            raise self._damaged(error) from None

    def _rows_before_a_damaged_one(self) -> Iterator[JobRow]:
        try:
            yield from self._rows()
        except UserError:
            raise
        except (ValueError, RecursionError):
            return

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: damaged. {error}. Delete it, and the job begins anew.")

    def remove(self) -> None:
        """Delete the rows once the output is whole."""
        self._connection.close()
        self.remove_files()

    def remove_files(self) -> None:
        """Delete the file and what SQLite keeps beside it."""
        for end in ("", *_SIDE_FILES):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
        # the lock is held until the connection is closed, or the process dies
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        # a commit costs one write, and only a power cut could lose the last of them
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
            found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
            for statement in _TABLES.values() if not found else ():
                connection.execute(statement)
            # a view or a trigger of somebody else's would run without end
            if found and found != _TABLES:
                raise _OtherTablesError
    except BaseException:
        connection.close()
        raise
    return connection


def _encode(text: str) -> bytes:
    """Encode a text that may hold a file name that is not Unicode."""
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
