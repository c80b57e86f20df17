"""Read files in threads while the previous batch is being computed."""

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
    """An item after an attempt to read it.

    Args:
        item: Item that was read.
        stamp: :func:`finetune.inference.job_store.file_stamp` of its file, taken before it was read.
        value: Result of reading; None if the item could not be read.
        error: Reason why the item could not be read; empty if it was read.
    """

    item: Item
    stamp: str
    value: Value | None = None
    error: str = ""


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Value], *, batch_size: int, path_of: Callable[[Item], str]
) -> Iterator[list[ReadResult[Item, Value]]]:
    """Yield items in batches, in order; while the caller works on one batch, threads read the next.

    Args:
        items: Items to read.
        read: Function that reads one item, called in a thread; a :class:`UserError` becomes the item's error.
        batch_size: Number of items per batch.
        path_of: Function that returns the path of an item's file.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as threads:

        def submit() -> list[tuple[Item, str, Future[Value]]]:
            # the stamp comes first, so that a file that changes during reading counts as changed
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
