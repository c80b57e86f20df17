"""Reading files in threads while the batch before them is computed."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetune.errors import UserError
from finetune.inference.job_store import file_stamp

MAX_THREADS = 4

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class ReadResult(Generic[Item, Value]):
    """An item that was read, or could not be.

    Args:
        item: The item.
        stamp: :func:`finetune.inference.job_store.file_stamp` of its file, taken before it was read.
        value: What was read; None where it could not be.
        error: Why it could not be read; empty where it could.
    """

    item: Item
    stamp: str
    value: Value | None = None
    error: str = ""


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Value], *, batch_size: int, path_of: Callable[[Item], str]
) -> Iterator[list[ReadResult[Item, Value]]]:
    """Yield items in batches, in their order; while one batch is worked on, threads read the next.

    Args:
        items: What is read.
        read: Reads one item, in a thread; a :class:`UserError` is a property of the item.
        batch_size: Items in a batch.
        path_of: Path of the item's file.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as threads:

        def submit() -> list[tuple[Item, str, Future[Value]]]:
            # the stamp comes first: a file that changes while it is read is then seen as changed
            return [
                (item, file_stamp(path_of(item)), threads.submit(read, item))
                for item in itertools.islice(remaining, batch_size)
            ]

        batch = submit()
        while batch:
            following = submit()
            yield [_result(item, stamp, future) for item, stamp, future in batch]
            batch = following


def _result(item: Item, stamp: str, future: Future[Value]) -> ReadResult[Item, Value]:
    try:
        return ReadResult(item=item, stamp=stamp, value=future.result())
    except UserError as error:
        return ReadResult(item=item, stamp=stamp, error=getattr(error, "reason", str(error)))
