"""Embed images into a file: images are streamed, their features stored batch by batch, and known images skipped."""

import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.manifest import write_left_out
from finetune.embeddings.embeddings import PRECISIONS, Embeddings
from finetune.embeddings.extractor import FeatureExtractor
from finetune.embeddings.files import Block, Features, check_embeddings_path, write_embeddings
from finetune.embeddings.image_records import ImageRecord, ImageRecords
from finetune.embeddings.lookup import EmbeddingLookup
from finetune.embeddings.whitening import (
    Whitening,
    digest_of,
    fit_whitening,
    l2_normalize,
    load_whitening,
    save_whitening,
    whitening_path,
)
from finetune.errors import UserError
from finetune.inference.job_progress import image_progress
from finetune.inference.job_store import JobRow, JobStore, file_stamp, job_path
from finetune.inference.read_ahead import ReadResult, read_ahead
from finetune.plain import Json
from finetune.versions import versions

log = logging.getLogger(__name__)

_BLOCK = 4096


@dataclass(kw_only=True)
class EmbedSummary:
    """Counts of an embedding job.

    Args:
        images: Number of rows in the file.
        computed: Number of these rows that went through the network; the others were taken from the earlier file.
        changed: Number of computed rows whose path had different content in the earlier file.
        gone: Number of rows of the earlier file whose path is not among the images; they are not in the new file.
        unreadable: Path and reason of each file that could not be read.
    """

    images: int = 0
    computed: int = 0
    changed: int = 0
    gone: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the features and of the job.

    Args:
        normalize: Whether to scale each feature vector to length one, after whitening.
        whiten: Whether to whiten the features.
        directions: Number of directions that whitening keeps; None keeps all in which images differ.
        precision: ``float16`` or ``float32``.
        batch_size: Number of images per forward pass.
    """

    normalize: bool = False
    whiten: bool = False
    directions: int | None = None
    precision: str = "float16"
    batch_size: int = 32

    @property
    def identity(self) -> dict[str, Json]:
        """Settings that the numbers in the file depend on."""
        kept = {"directions": self.directions, "precision": self.precision}
        return {"normalize": self.normalize, "whiten": self.whiten, **kept}


def embed_to_file(
    extractor: FeatureExtractor, records: ImageRecords, output: str | Path, *, settings: Settings | None = None
) -> EmbedSummary:
    """Embed images into a file; after an interruption the same call continues where it stopped.

    If the file exists and was made by the same model with the same settings, images whose content it holds are not computed
    again, even under another name, and rows whose image is no longer among the records are left out. Memory grows by about 50
    bytes per row of the earlier file, and does not otherwise depend on the number of images.

    Args:
        extractor: Model that computes the features.
        records: Images to embed; must be the same, in the same order, when a job continues.
        output: ``.npz`` or ``.parquet`` file.
        settings: Settings of the features and of the job; None uses the defaults.

    Raises:
        UserError: The output cannot be written in this form, the path holds something else, or no image could be read.
    """
    settings, output = settings or Settings(), Path(output).expanduser()
    check_settings(settings, output)
    identity = {**extractor.identity, **settings.identity}
    lookup, whitening = _earlier(output, identity, settings)
    job = {"job": "embed", **identity, **records.identity, "batch_size": settings.batch_size}
    job |= {"earlier": file_stamp(str(output)) if lookup else None}
    with JobStore(job_path(output), settings=job, batch_size=settings.batch_size) as store:
        if store.discarded:
            log.info("an earlier attempt used other settings, data or another model; starting over")
        _compute(store, extractor, records, lookup, settings)
        summary = _summarize(store, lookup)
        if not summary.images:
            raise UserError(
                f"--output {output}: no image could be read, so there is nothing to write. {_first(summary)}"
            )
        if settings.whiten and whitening is None:
            whitening = _fit_whitening(store, settings)
            save_whitening(whitening, whitening_path(output), identity=identity)
            where = f" of the {whitening.split} split" if whitening.split else ""
            log.info(
                "whitening: %d directions fitted on %d images%s", len(whitening.directions), whitening.images, where
            )
        metadata = {
            **extractor.identity,
            "model": extractor.model,
            "stages": list(extractor.stages),
            **settings.identity,
            "whitening": _whitening_record(output, whitening),
            **records.metadata,
            "versions": versions(),
        }
        write_embeddings(output, _blocks(store, lookup, whitening, settings), metadata=metadata)
        _list_unreadable(summary, output)
        store.remove()
    return summary


def check_settings(settings: Settings, output: Path) -> None:
    """Check the settings before any heavy work.

    Raises:
        UserError: A setting is out of range.
    """
    check_embeddings_path(output, name="--output")
    if settings.precision not in PRECISIONS:
        raise UserError(f"--precision {settings.precision}: must be one of {', '.join(PRECISIONS)}.")
    if settings.directions is not None and settings.directions < 1:
        raise UserError(f"--directions {settings.directions}: must be at least 1.")
    if settings.batch_size < 1:
        raise UserError(f"--batch-size {settings.batch_size}: must be at least 1.")


def _earlier(
    output: Path, identity: Mapping[str, Any], settings: Settings
) -> tuple[EmbeddingLookup | None, Whitening | None]:
    """Return a lookup of the output's earlier file, and its whitening; None for each that does not fit this model."""
    whitening, place = None, whitening_path(output)
    if settings.whiten and place.is_file():
        stored, valid_for = load_whitening(place)
        whitening = stored if valid_for == identity else None
        if whitening is not None:
            log.info("whitening: reusing %s, fitted on %d images; delete it to refit", place.name, whitening.images)
    if not output.exists():
        return None, whitening
    earlier = Embeddings.load(output)
    made_by = earlier.metadata.get("model") or {}
    recorded = {**earlier.metadata, "model": {key: made_by.get(key) for key in identity["model"]}}
    differs = [key for key, value in identity.items() if recorded.get(key) != value]
    if settings.whiten and (recorded.get("whitening") or {}).get("sha256") != _digest(place):
        differs.append("whitening")
    if differs:
        log.info("%s: was made with another %s. All images are computed again.", output, " and ".join(differs))
        return None, whitening
    return EmbeddingLookup(earlier), whitening


def _digest(path: Path) -> str | None:
    return digest_of(path) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """An image's entry in the job store, besides its features.

    Args:
        label: Class of the image.
        split: Split of the image.
        content: Digest of the image's bytes, hexadecimal.
        earlier_row: Row of the earlier file that has its features; None if they were computed.
    """

    label: str
    split: str
    content: str
    earlier_row: int | None = None


def _compute(
    store: JobStore,
    extractor: FeatureExtractor,
    records: ImageRecords,
    lookup: EmbeddingLookup | None,
    settings: Settings,
) -> None:
    """Store one row per image: the reason why it cannot be read, its features, or the row of the earlier file with them."""
    widths: set[int] = set()

    def is_whole(row: JobRow) -> bool:
        return _is_whole(row, lookup, settings, widths)

    remaining, kept = store.resume(records, _path_of, is_whole=is_whole)
    if kept:
        log.info("reusing %d images from an earlier attempt", kept)
    is_known = lookup.holds if lookup is not None else lambda content: False

    def read(record: ImageRecord) -> tuple[bytes, Any]:
        return records.read(record, extractor, is_known)

    with image_progress(kept) as advance:
        for batch in read_ahead(remaining, read, batch_size=settings.batch_size, path_of=_path_of):
            rows = _embed(batch, extractor, lookup, settings)
            widths |= {len(np.frombuffer(row.data, settings.precision)) for row in rows if row.data}
            if len(widths) > 1:
                raise UserError(
                    f"{store.path}: damaged. Its rows differ in their number of features. Delete it to start the "
                    "job over."
                )
            store.append(rows)
            advance(len(batch))


def _is_whole(row: JobRow, lookup: EmbeddingLookup | None, settings: Settings, widths: set[int]) -> bool:
    """Tell whether a job-store row has the form that :func:`_embed` writes; also adds its number of columns to ``widths``."""
    if row.error:
        return row.result is None and not row.data
    if not isinstance(row.result, dict) or set(row.result) != {"label", "split", "content", "earlier_row"}:
        return False
    if not all(isinstance(row.result[key], str) for key in ("label", "split", "content")):
        return False
    if not re.fullmatch("[0-9a-f]{32}", row.result["content"]):
        return False
    earlier = row.result["earlier_row"]
    if earlier is not None:
        return lookup is not None and type(earlier) is int and 0 <= earlier < len(lookup) and not row.data
    if not row.data or len(row.data) % np.dtype(settings.precision).itemsize:
        return False
    features = np.frombuffer(row.data, settings.precision)
    widths.add(len(features))
    return len(widths) == 1 and bool(np.isfinite(features).all())


def _path_of(record: ImageRecord) -> str:
    return record.path


def _embed(
    batch: list[ReadResult[ImageRecord, tuple[bytes, Any]]],
    extractor: FeatureExtractor,
    lookup: EmbeddingLookup | None,
    settings: Settings,
) -> list[JobRow]:
    views = [read.value[1] for read in batch if read.value is not None]
    views = [view for view in views if view is not None and not isinstance(view, np.ndarray)]
    computed = iter(_cast(extractor.embed(views), settings.precision) if views else ())
    rows: list[JobRow] = []
    for read in batch:
        record = read.item
        if read.value is None:
            rows.append(JobRow(path=record.path, stamp=read.stamp, error=read.error))
            continue
        content, view = read.value
        data, earlier_row = b"", None
        if view is None:
            assert lookup is not None, "only an image of the earlier file has no view"
            earlier_row = lookup.row_of_content(content)
        elif isinstance(view, np.ndarray):
            data = _cast(view, settings.precision).tobytes()
        else:
            data = next(computed).tobytes()
        result = _Embedded(label=record.label, split=record.split, content=content.hex(), earlier_row=earlier_row)
        rows.append(JobRow(path=record.path, stamp=read.stamp, result=asdict(result), data=data))
    return rows


def _cast(features: npt.NDArray[np.float32], precision: str) -> Features:
    with np.errstate(over="ignore"):
        cast = features.astype(precision)
    if not np.isfinite(cast).all():
        if not np.isfinite(features).all():
            raise UserError("the network computes features that are not finite. Its weights are unusable.")
        raise UserError(
            f"--precision {precision}: holds values up to {np.finfo(precision).max:g}. The features reach "
            f"{np.abs(features).max():g}. Use --precision float32."
        )
    return cast


def _summarize(store: JobStore, lookup: EmbeddingLookup | None) -> EmbedSummary:
    summary = EmbedSummary()
    for row in store.rows():
        was_there = lookup is not None and lookup.note_path(row.path)
        if row.error:
            summary.unreadable.append((row.path, row.error))
            continue
        earlier_row = _Embedded(**row.result).earlier_row
        summary.images += 1
        summary.computed += earlier_row is None
        summary.changed += was_there and earlier_row is None
        if lookup is not None and earlier_row is not None:
            lookup.note_row(earlier_row)
    summary.gone = lookup.gone if lookup is not None else 0
    return summary


def _fit_whitening(store: JobStore, settings: Settings) -> Whitening:
    """Fit on the training images if there are any, because test images must not influence the features."""
    readable = (row for row in store.rows() if not row.error)
    trained = any(row.result["split"] == "train" for row in readable)
    rows = (row for row in store.rows() if not row.error and (not trained or row.result["split"] == "train"))
    vectors = (np.frombuffer(row.data, settings.precision) for row in rows)
    return fit_whitening(_stacks(vectors), keep=settings.directions, split="train" if trained else "")


def _stacks(vectors: Iterable[Features]) -> Iterator[Features]:
    vectors = iter(vectors)
    while rows := list(itertools.islice(vectors, _BLOCK)):
        yield np.stack(rows)


def transformed(
    features: npt.NDArray[np.floating[Any]], whitening: Whitening | None, *, normalize: bool
) -> npt.NDArray[np.floating[Any]]:
    """Return features whitened and normalised, in the form that the file stores."""
    values = features if whitening is None else whitening(features)
    return l2_normalize(values) if normalize else values


def _blocks(
    store: JobStore, lookup: EmbeddingLookup | None, whitening: Whitening | None, settings: Settings
) -> Iterator[Block]:
    readable = (row for row in store.rows() if not row.error)
    while rows := list(itertools.islice(readable, _BLOCK)):
        results = [_Embedded(**row.result) for row in rows]
        computed = [np.frombuffer(row.data, settings.precision) for row in rows if row.data]
        if computed:
            values = transformed(np.stack(computed), whitening, normalize=settings.normalize)
            computed = list(_cast(values, settings.precision))
        new = iter(computed)
        features = [
            next(new) if result.earlier_row is None else _earlier_features(lookup, result.earlier_row)
            for result in results
        ]
        yield Block(
            paths=[row.path for row in rows],
            labels=[result.label for result in results],
            splits=[result.split for result in results],
            contents=[result.content for result in results],
            features=np.stack(features),
        )


def _earlier_features(lookup: EmbeddingLookup | None, row: int) -> Features:
    assert lookup is not None, "a row refers to an earlier file"
    features: Features = lookup.features[row]
    return features


def _whitening_record(output: Path, whitening: Whitening | None) -> dict[str, Json] | None:
    if whitening is None:
        return None
    place = whitening_path(output)
    return {
        "file": place.name,
        "sha256": digest_of(place),
        "directions": len(whitening.directions),
        "images": whitening.images,
        "split": whitening.split,
    }


def unreadable_path(output: Path) -> Path:
    """Return the path of the list of files that could not be read."""
    return output.with_name(f"{output.stem}.unreadable.csv")


def _list_unreadable(summary: EmbedSummary, output: Path) -> None:
    place = unreadable_path(output)
    place.unlink(missing_ok=True)
    if summary.unreadable:
        write_left_out(summary.unreadable, place)
        count = len(summary.unreadable)
        log.info("%d unreadable files are left out, listed in %s. %s", count, place.name, _first(summary))


def _first(summary: EmbedSummary) -> str:
    return f"The first: {summary.unreadable[0][0]}: {summary.unreadable[0][1]}" if summary.unreadable else ""
