"""Classify image files in a stream: decoded ahead in threads, journalled batch by batch, written when all are done."""

import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from finetune.errors import UserError
from finetune.inference.journal import Journal, journal_path, stamp
from finetune.inference.prediction_table import Prediction, check_output, write_predictions

_REDRAW_SECONDS = 0.25
# an image shows a class whose probability is above this, where it may show several
HALF = 0.5


class Classifies(Protocol):
    """Something that classifies images that have been read: PyTorch or ONNX Runtime."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        ...

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes, or none."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the answers depend on, as plain JSON values."""
        ...

    def classify(self, images: list[Any]) -> npt.NDArray[np.float32]:
        """Probabilities (N, K)."""
        ...


class Engine(Classifies, Protocol):
    """It reads files."""

    def read(self, path: str) -> Any:
        """An image, ready for :meth:`classify`; called from several threads.

        Raises:
            UnreadableImage: It cannot be read.
        """
        ...


def predict_to_file(
    engine: Engine,
    paths: Iterable[str],
    output: str | Path,
    *,
    top_k: int = 1,
    batch_size: int = 32,
    say: Any = print,
) -> tuple[int, int]:
    """Classify files into a table; interrupted, the same call goes on where it stopped.

    Memory does not grow with the number of files.

    Args:
        engine: What classifies.
        paths: Image files; the same ones in the same order when it goes on.
        output: ``.csv``, ``.jsonl`` or ``.parquet``.
        top_k: Classes in each row.
        batch_size: Images in one forward pass.
        say: Takes a line for the user.

    Returns:
        Number of rows, and how many of them are unreadable images.

    Raises:
        UserError: The output cannot be written so, or ``top_k`` is more than there are classes.
    """
    output = Path(output).expanduser()
    check_output(output)
    if not 1 <= top_k <= len(engine.classes):
        raise UserError(f"--top-k {top_k}: must be from 1 to the number of classes, {len(engine.classes)}.")
    header = {"journal": 1, **engine.identity, "top_k": top_k, "batch_size": batch_size}
    with Journal(journal_path(output), header=header, batch_size=batch_size) as journal:
        if journal.begun_anew:
            say("an earlier attempt had other settings or another model: begun anew")
        left, kept = journal.resume(iter(paths))
        if kept:
            say(f"{kept} rows are there from an earlier attempt")
        progress = Progress(kept)
        for rows in classify_batches(engine, left, top_k=top_k, batch_size=batch_size):
            journal.append(rows)
            progress.advance(len(rows))
        progress.finish()
        counts = write_predictions(_predictions(journal, engine, top_k), output, top_k=top_k)
        journal.remove()
    return counts


def classify_batches(engine: Engine, paths: Iterable[str], *, top_k: int, batch_size: int) -> Iterator[list[list[Any]]]:
    """Rows for the journal, a batch at a time; the next batch is decoded while one is computed."""
    paths = iter(paths)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:

        def ahead() -> list[tuple[str, list[int], Future[Any]]]:
            # the stamp is taken before the file is read: a file changed in between is then seen as changed
            return [
                (path, stamp(path), threads.submit(engine.read, path)) for path in itertools.islice(paths, batch_size)
            ]

        batch = ahead()
        while batch:
            following = ahead()
            yield _classify(engine, batch, top_k)
            batch = following


def _classify(engine: Engine, batch: list[tuple[str, list[int], Future[Any]]], top_k: int) -> list[list[Any]]:
    read: list[tuple[Any, str]] = []
    for _, _, future in batch:
        try:
            read.append((future.result(), ""))
        except UserError as error:
            read.append((None, getattr(error, "reason", str(error))))
    images = [image for image, reason in read if not reason]
    shares = iter(engine.classify(images)) if images else iter(())
    rows: list[list[Any]] = []
    for (path, marked, _), (_, reason) in zip(batch, read, strict=True):
        if reason:
            rows.append([path, marked, reason])
            continue
        row = next(shares)
        # where an image may show several classes, all that it shows are kept
        count = max(top_k, int((row > HALF).sum())) if engine.multi_label else top_k
        best = np.argsort(-row, kind="stable")[:count]
        rows.append([path, marked, [[int(number), float(row[number])] for number in best]])
    return rows


def _predictions(journal: Journal, engine: Engine, top_k: int) -> Iterator[Prediction]:
    for path, _, result in journal.rows():
        if isinstance(result, str):
            yield Prediction(path=path, error=result)
            continue
        top = tuple((engine.classes[number], share) for number, share in result[:top_k])
        shown = sorted(number for number, share in result if share > HALF) if engine.multi_label else ()
        labels = tuple(engine.classes[number] for number in shown) if engine.multi_label else None
        yield Prediction(path=path, top=top, labels=labels)


class Progress:
    """Images done and images a second on standard error, where that is a terminal.

    Args:
        kept: Images done in earlier attempts.
    """

    def __init__(self, kept: int) -> None:
        self._kept, self._done, self._began, self._drawn = kept, 0, time.monotonic(), 0.0
        self._shown = sys.stderr.isatty()

    def advance(self, count: int) -> None:
        """More images are done."""
        self._done += count
        now = time.monotonic()
        if self._shown and now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            rate = self._done / max(now - self._began, 1e-9)
            print(f"\r{self._kept + self._done:,} images, {rate:,.0f} a second ", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Leave the line."""
        if self._shown and self._drawn:
            print(file=sys.stderr)
