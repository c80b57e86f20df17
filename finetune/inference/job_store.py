"""Finished rows of a long job, kept in SQLite so that a killed job continues where it stopped."""

import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from finetune.errors import UserError
from finetune.plain import Json
from finetune.safe_files import check_regular

SUFFIX = ".job"
# limit of a string or of a row's numbers, in bytes
LARGEST_VALUE = 64 * 2**20
_TABLES = {
    "job": "CREATE TABLE job (settings TEXT)",
    "rows": "CREATE TABLE rows (position INTEGER PRIMARY KEY, path BLOB, stamp TEXT, error BLOB, result TEXT, data BLOB)",
}
# files that SQLite keeps beside the database while it is open, or after a kill
_SIDE_FILES = ("-wal", "-shm", "-journal")

Item = TypeVar("Item")


def job_path(output: Path) -> Path:
    """Return the path of the database that holds the rows until the output is complete."""
    return output.with_name(f".{output.name}{SUFFIX}")


def file_stamp(path: str) -> str:
    """Return size and modification time of a file, or an empty text if missing; a changed stamp means the row is redone."""
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
        error: Reason why the item could not be read; empty if it was read.
        result: What the job computed, as a JSON value.
        data: Further bytes: numbers of the result, or of ``finetune predict`` the path as its list gave it.
    """

    path: str
    stamp: str
    error: str = ""
    result: Any = None
    data: bytes = b""


class _OtherTablesError(Exception):
    """The file is a database, but not of a job."""


def _any_row(row: JobRow) -> bool:
    return True


class JobStore:
    """Rows of one job. Batches are committed as a whole, and only one process can have the file open.

    Args:
        path: Database file; created if missing.
        settings: All settings that the rows depend on. Rows made with other settings are discarded.
        batch_size: Number of rows computed together.

    Attributes:
        discarded: Whether rows of other settings were discarded.

    Raises:
        UserError: Another process has the file open, or the folder is not writable.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, Json], batch_size: int) -> None:
        self.path = path
        self.batch_size = batch_size
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            # SQLite would block on a pipe, read a device, and write to the target of a link
            if path.is_symlink():
                raise UserError(f"{path}: must be a regular file. It is a link. Delete it to start the job over.")
            check_regular(path)
        encoded = json.dumps(settings, sort_keys=True)
        try:
            self._connection = _open(path)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                why = "another process is writing this output. Wait for it, or give another --output."
                raise UserError(f"{path}: {why}") from None
            raise UserError(f"{path.parent}: cannot be written to. {error}.") from None
        except (sqlite3.DatabaseError, _OtherTablesError):  # not a database, a damaged one, or another program's
            self.remove_files()
            self._connection = _open(path)
        stored = self._connection.execute("SELECT settings FROM job").fetchone()
        self.discarded = stored is not None and stored[0] != encoded
        if stored is None or self.discarded:
            with self._connection:
                self._connection.execute("DELETE FROM rows")
                self._connection.execute("DELETE FROM job")
                self._connection.execute("INSERT INTO job VALUES (?)", (encoded,))

    def __enter__(self) -> "JobStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def resume(
        self, items: Iterable[Item], path_of: Callable[[Item], str], *, is_whole: Callable[[JobRow], bool] = _any_row
    ) -> tuple[Iterator[Item], int]:
        """Keep the rows whose items and files have not changed since, and drop the rest.

        Only whole batches are kept, so the remaining batches are those of an uninterrupted job, and the results agree to the last
        digit.

        Args:
            items: All items of the job, in order.
            path_of: Function that returns an item's name.
            is_whole: Function that checks whether the job could have written a row, because the file may have another origin.

        Returns:
            The items still to do, and the number of rows kept.
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
        """Add the rows of a batch; once this returns they survive a kill."""
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
        """Yield all rows from the first; :meth:`resume` has already dropped invalid ones.

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
            if isinstance(error, sqlite3.OperationalError):  # a disk error, perhaps
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
        return UserError(f"{self.path}: damaged. {error}. Delete it to start the job over.")

    def remove(self) -> None:
        """Delete the stored rows, once the output is complete."""
        self._connection.close()
        self.remove_files()

    def remove_files(self) -> None:
        """Delete the database and the files that SQLite keeps beside it."""
        for end in ("", *_SIDE_FILES):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
        # the lock lasts until the connection is closed or the process dies
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        # a commit costs one write; only a power cut could lose the last commits
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
            tables = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
            for statement in _TABLES.values() if not tables else ():
                connection.execute(statement)
            # a foreign view or trigger could run without end
            if tables and tables != _TABLES:
                raise _OtherTablesError
    except BaseException:
        connection.close()
        raise
    return connection


def _encode(text: str) -> bytes:
    """Encode a string that may hold a file name that is not Unicode."""
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
