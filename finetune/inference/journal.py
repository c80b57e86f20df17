"""A journal of finished rows, so that a long job that was killed goes on where it stopped.

One line a row, appended batch by batch and flushed. Going on means reading the journal beside the list of inputs: rows
whose file is the same are kept, up to the last whole batch before the first difference or the torn last line. Keeping whole
batches keeps the batches of the rest what they would have been, and with them the last digits of the results.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from finetune.errors import UserError

SUFFIX = ".journal"


def journal_path(output: Path) -> Path:
    """Where the journal of an output lies."""
    return output.with_name(f".{output.name}{SUFFIX}")


def stamp(path: str) -> list[int]:
    """Size and time of a file: when they change, its row is made again."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path with a null byte
        return []
    return [found.st_size, found.st_mtime_ns]


class Journal:
    """Rows of one job: ``[path, stamp, result]`` as JSON lines after a header.

    Args:
        path: The file; made where it is missing.
        header: What the rows depend on; a journal with another header is begun anew.
        batch_size: Rows that are computed together.

    Raises:
        UserError: Another process is writing it.
    """

    def __init__(self, path: Path, *, header: dict[str, Any], batch_size: int) -> None:
        self.path = path
        self.batch_size = batch_size
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            _lock(self._file, path)
        except BaseException:
            self._file.close()
            raise
        line = json.dumps(header, sort_keys=True).encode() + b"\n"
        self.begun_anew = False
        found = self._file.readline()
        if found != line:
            self.begun_anew = bool(found)
            self._file.seek(0)
            self._file.truncate()
            self._file.write(line)
            self._file.flush()
        self._start = len(line)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def resume(self, paths: Iterator[str]) -> tuple[Iterator[str], int]:
        """The inputs still to do, and how many rows are kept."""
        self._file.seek(self._start)
        keep, kept, waiting = self._start, 0, []
        while (row := self._next_row()) is not None:
            path = next(paths, None)
            if path is None:
                break
            waiting.append(path)
            if row[:2] != [path, stamp(path)]:
                break
            if len(waiting) == self.batch_size:
                keep, kept = self._file.tell(), kept + len(waiting)
                waiting.clear()
        self._file.seek(keep)
        self._file.truncate()
        return itertools.chain(waiting, paths), kept

    def _next_row(self) -> list[Any] | None:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            return None
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, list) and len(row) == 3:
                return row
        return None

    def append(self, rows: list[list[Any]]) -> None:
        """Add the rows of a batch; they survive a kill from here on."""
        self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self._file.flush()

    def rows(self) -> Iterator[list[Any]]:
        """All rows from the first."""
        self._file.seek(self._start)
        while (row := self._next_row()) is not None:
            yield row

    def remove(self) -> None:
        """When the output is whole."""
        self.path.unlink(missing_ok=True)


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two processes with one output are not kept apart there
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(
            f"{path}: another process is writing this output. Wait for it, or give another --output."
        ) from None
