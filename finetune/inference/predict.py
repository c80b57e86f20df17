"""Streaming prediction on image files: read ahead in threads, stored batch by batch, written when all are done."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.confidence.conformal import PredictionSets
from finetune.confidence.selective import Acceptance
from finetune.confidence.thresholds import labels_shown
from finetune.errors import UserError
from finetune.file_schema import joined_labels
from finetune.inference.answers import UNKNOWN, Answers, check_named, is_known
from finetune.inference.image_paths import ListedPath
from finetune.inference.job_progress import image_progress
from finetune.inference.job_store import JobRow, JobStore, job_path
from finetune.inference.prediction_table import Cell, Prediction, check_output, write_predictions
from finetune.inference.read_ahead import ReadResult, read_ahead
from finetune.plain import Json

log = logging.getLogger(__name__)


class Classifies(Protocol):
    """A classifier of images that have been read, in PyTorch or ONNX Runtime."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        ...

    @property
    def multi_label(self) -> bool:
        """Tell whether an image may show several classes, or none."""
        ...

    @property
    def thresholds(self) -> Sequence[float]:
        """For several labels, the probability above which each class is predicted."""
        ...

    @property
    def identity(self) -> Mapping[str, Json]:
        """Everything that the predictions depend on, as plain JSON values."""
        ...

    @property
    def tells_unknown(self) -> bool:
        """Tell whether it can tell images that are unlike the training images."""
        ...

    def classify(self, images: list[Any]) -> Answers:
        """Classify images that have been read."""
        ...


class Engine(Classifies, Protocol):
    """A classifier that also reads image files."""

    def read(self, path: str) -> Any:
        """Read an image for :meth:`classify`; called from several threads.

        Raises:
            UnreadableImage: The image cannot be read.
        """
        ...


def predict_to_file(
    engine: Engine,
    paths: Iterable[str],
    output: str | Path,
    *,
    top_k: int = 1,
    batch_size: int = 32,
    excel: bool = False,
    acceptance: Acceptance | None = None,
    sets: PredictionSets | None = None,
    names_unknown: bool = False,
    see: Callable[[JobRow, Prediction], None] = lambda row, prediction: None,
) -> tuple[int, int]:
    """Classify image files and write a table; after an interruption the same call continues where it stopped.

    Memory use does not grow with the number of files.

    Args:
        engine: Model that reads and classifies images.
        paths: Image files; must be the same, in the same order, when a job continues.
        output: ``.csv``, ``.jsonl`` or ``.parquet`` file.
        top_k: Number of classes in each row.
        batch_size: Number of images per forward pass.
        excel: Whether CSV begins with the mark by which Excel knows UTF-8.
        acceptance: Which answers are accepted, for a column ``accepted``; None for no such column.
        sets: Which classes are in the set of an image, for a column ``set``; None for no such column.
        names_unknown: Whether ``unknown`` is predicted for images that are unlike the training images, with a column ``nearest``
            for the class that would be predicted.
        see: Called with each row when the table is written.

    Returns:
        Number of rows, and number of unreadable images among them.

    Raises:
        UserError: The output cannot be written in this form, ``top_k`` is larger than the number of classes, or the model cannot
            tell unknown images or has a class of that name.
    """
    output = Path(output).expanduser()
    check_output(output)
    if not 1 <= top_k <= len(engine.classes):
        raise UserError(f"--top-k {top_k}: must be from 1 to the number of classes, {len(engine.classes)}.")
    check_named(engine.classes, tells_unknown=engine.tells_unknown, names_unknown=names_unknown)
    extra = ("nearest",) * names_unknown + ("unknown_score", "known") * engine.tells_unknown
    extra += ("accepted",) * (acceptance is not None) + ("set",) * (sets is not None)

    def read(path: str) -> Any:
        if not path:
            raise UserError("The row has no path.")
        return engine.read(path)

    settings = {"job": "predict", **engine.identity, "top_k": top_k, "batch_size": batch_size}
    if sets is not None:
        settings["sets"] = sets.least
    with JobStore(job_path(output), settings=settings, batch_size=batch_size) as store:
        if store.discarded:
            log.info("an earlier attempt used other settings or another model; starting over")
        remaining, kept = store.resume(paths, str, is_whole=lambda row: _is_whole(row, engine, top_k))
        if kept:
            log.info("reusing %d rows from an earlier attempt", kept)
        with image_progress(kept) as advance:
            for batch in read_ahead(remaining, read, batch_size=batch_size, path_of=str):
                store.append(_classify(engine, batch, top_k, sets))
                advance(len(batch))

        def predictions() -> Iterator[Prediction]:
            for row in store.rows():
                prediction = _prediction(row, engine, top_k, acceptance=acceptance, sets=sets, extra=extra)
                see(row, prediction)
                yield prediction

        counts = write_predictions(predictions(), output, top_k=top_k, excel=excel, extra=extra)
        store.remove()
    return counts


def _classify(
    engine: Engine, batch: list[ReadResult[str, Any]], top_k: int, sets: PredictionSets | None
) -> list[JobRow]:
    images = [read.value for read in batch if not read.error]
    answers = engine.classify(images).each() if images else iter(())
    rows = []
    for read in batch:
        if read.error:
            rows.append(JobRow(path=read.item, stamp=read.stamp, error=read.error, data=_given(read.item)))
            continue
        row, unknown_score = next(answers)
        order = np.argsort(-row, kind="stable")
        # for multi-label models, keep all that are predicted, which need not be the most probable
        shown = set(labels_shown(row, engine.thresholds)) if engine.multi_label else set()
        kept = top_k if sets is None else max(top_k, sets.count(row[order]))
        best = [*order[:kept], *(number for number in order[kept:] if number in shown)]
        result = {"top": [[int(number), float(row[number])] for number in best], "unknown_score": unknown_score}
        rows.append(JobRow(path=read.item, stamp=read.stamp, result=result, data=_given(read.item)))
    return rows


def _given(path: str) -> bytes:
    """Return a path as its list gives it; empty where it was not in a list, or is the same."""
    given = path.given if isinstance(path, ListedPath) else path
    return b"" if given == path else given.encode("utf-8", "surrogatepass")


def _path_of(row: JobRow) -> str:
    return row.data.decode("utf-8", "surrogatepass") if row.data else row.path


def _is_whole(row: JobRow, engine: Engine, top_k: int) -> bool:
    """Tell whether a row of the job store has the form that :func:`_classify` writes."""
    if row.error:
        return row.result is None
    if not isinstance(row.result, dict) or set(row.result) != {"top", "unknown_score"}:
        return False
    top, score = row.result["top"], row.result["unknown_score"]
    return (
        isinstance(score, float) == engine.tells_unknown
        and isinstance(top, list)
        and top_k <= len(top) <= len(engine.classes)
        and all(isinstance(pair, list) and list(map(type, pair)) == [int, float] for pair in top)
        and all(0 <= number < len(engine.classes) for number, _ in top)
    )


def _prediction(
    row: JobRow,
    engine: Engine,
    top_k: int,
    *,
    acceptance: Acceptance | None,
    sets: PredictionSets | None,
    extra: tuple[str, ...],
) -> Prediction:
    if row.error:
        return Prediction(path=_path_of(row), error=row.error, extra=dict.fromkeys(extra))
    results = row.result["top"]
    top = tuple((engine.classes[number], probability) for number, probability in results[:top_k])
    shown = (
        sorted(number for number, share in results if share > engine.thresholds[number]) if engine.multi_label else ()
    )
    labels = tuple(engine.classes[number] for number in shown) if engine.multi_label else None
    score = row.result["unknown_score"]
    known = is_known(score)
    values: dict[str, Cell] = {"nearest": top[0][0], "unknown_score": score, "known": known}
    if acceptance is not None:
        values["accepted"] = acceptance.accepts(top[0][1], known=known)
    if sets is not None:
        shares = np.array([share for _, share in results])
        values["set"] = joined_labels(engine.classes, [number for number, _ in results[: sets.count(shares)]])
    if "nearest" in extra and known is False:
        labels = (UNKNOWN,)
    return Prediction(path=_path_of(row), top=top, labels=labels, extra={name: values[name] for name in extra})
