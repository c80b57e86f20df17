"""Embed images into a file: streamed, journalled batch by batch, and only what the file does not hold yet is computed."""

import base64
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.manifest import write_left_out
from finetune.embeddings.embeddings import PRECISIONS, Block, Features
from finetune.embeddings.extractor import FeatureExtractor
from finetune.embeddings.files import check_embeddings_path, open_embeddings, write_embeddings
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
from finetune.inference.journal import Journal, journal_path, stamp
from finetune.inference.predict import Progress
from finetune.versions import versions

Say = Callable[[str], None]
_BLOCK = 4096


@dataclass(kw_only=True)
class EmbedSummary:
    """What became of the images.

    Args:
        images: Rows of the file.
        computed: Of these, the ones that went through the network; the others were in the earlier file.
        changed: Of the computed, those whose path the earlier file had with another content.
        gone: Rows of the earlier file whose path was not among the images, and that are not in the new file.
        unreadable: Path and reason of each file that could not be read.
    """

    images: int = 0
    computed: int = 0
    changed: int = 0
    gone: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What happens to the features.

    Args:
        normalize: Scale each to length one, after whitening.
        whiten: Whether to whiten them.
        directions: Number of directions that whitening keeps; None for all in which images differ.
        precision: ``float16`` or ``float32``.
        batch_size: Images in one forward pass.
    """

    normalize: bool = False
    whiten: bool = False
    directions: int | None = None
    precision: str = "float16"
    batch_size: int = 32

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers in the file depend on."""
        kept = {"directions": self.directions, "precision": self.precision}
        return {"normalize": self.normalize, "whiten": self.whiten, **kept}


def embed_to_file(
    extractor: FeatureExtractor,
    samples: ImageRecords,
    output: str | Path,
    *,
    settings: Settings | None = None,
    say: Say = print,
) -> EmbedSummary:
    """Embed images into a file; interrupted, the same call goes on where it stopped.

    Where the file is there already, made by the same model with the same settings, images whose content it holds are not
    computed again, whatever they are called now, and rows whose image is no longer among the samples are left out.

    Memory grows by some 50 bytes a row of the earlier file, and by nothing else.

    Args:
        extractor: What makes the features.
        samples: The images; the same ones in the same order when it goes on.
        output: ``.npz`` or ``.parquet``.
        settings: What happens to the features.
        say: Takes a line for the user.

    Raises:
        UserError: The output cannot be written so, something else stands there, or no image could be read.
    """
    settings, output = settings or Settings(), Path(output).expanduser()
    check_settings(settings, output)
    identity = {**extractor.identity, **settings.identity}
    known, whitening = _earlier(output, identity, settings, say)
    header = {"journal": "embed 1", **identity, **samples.identity, "batch_size": settings.batch_size}
    header |= {"earlier": stamp(str(output)) if known else None}
    with Journal(journal_path(output), header=header, batch_size=settings.batch_size) as journal:
        if journal.begun_anew:
            say("an earlier attempt had other settings, data or model: begun anew")
        _fill(journal, extractor, samples, known, settings, say)
        told = _tell(journal, known)
        if not told.images:
            raise UserError(f"--output {output}: no image could be read, so there is nothing to write. {_first(told)}")
        if settings.whiten and whitening is None:
            whitening = _fit(journal, settings)
            save_whitening(whitening, whitening_path(output), identity=identity)
            where = f" of the {whitening.split} split" if whitening.split else ""
            say(f"whitening: {len(whitening.directions)} directions fitted on {whitening.images} images{where}")
        metadata = {
            **extractor.identity,
            "model": extractor.model,
            "stages": list(extractor.stages),
            **settings.identity,
            "whitening": _named(output, whitening),
            **samples.metadata,
            "versions": versions(),
        }
        write_embeddings(output, _blocks(journal, known, whitening, settings), metadata=metadata)
        _list_unreadable(told, output, say)
        journal.remove()
    return told


def check_settings(settings: Settings, output: Path) -> None:
    """What can be said before anything heavy is done.

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
    output: Path, identity: dict[str, Any], settings: Settings, say: Say
) -> tuple[EmbeddingLookup | None, Whitening | None]:
    """What the file at the output is good for, and the whitening beside it where it was fitted on the same model."""
    whitening, place = None, whitening_path(output)
    if settings.whiten and place.is_file():
        found, valid_for = load_whitening(place)
        whitening = found if valid_for == identity else None
        if whitening is not None:
            say(f"whitening: the one of {place.name}, fitted on {whitening.images} images; remove it to fit it anew")
    if not output.exists():
        return None, whitening
    earlier = open_embeddings(output)
    made_by = earlier.metadata.get("model") or {}
    theirs = {**earlier.metadata, "model": {key: made_by.get(key) for key in identity["model"]}}
    differs = [key for key, value in identity.items() if theirs.get(key) != value]
    if settings.whiten and (theirs.get("whitening") or {}).get("sha256") != _digest(place):
        differs.append("whitening")
    if differs:
        say(f"{output}: was made with another {' and '.join(differs)}. All images are computed again.")
        return None, whitening
    return EmbeddingLookup(earlier), whitening


def _digest(path: Path) -> str | None:
    return digest_of(path) if path.is_file() else None


def _fill(
    journal: Journal,
    extractor: FeatureExtractor,
    samples: ImageRecords,
    known: EmbeddingLookup | None,
    settings: Settings,
    say: Say,
) -> None:
    """One row a sample in the journal: why it cannot be read, or its features, or the row that has them already."""
    listed: dict[str, ImageRecord] = {}

    def paths() -> Iterator[str]:
        for sample in samples:
            # what is known of a path is kept until its batch has been put together, and no longer
            listed.pop(sample.path, None)
            listed[sample.path] = sample
            if len(listed) > 2 * settings.batch_size:
                del listed[next(iter(listed))]
            yield sample.path

    left, kept = journal.resume(paths())
    if kept:
        say(f"{kept} images are done from an earlier attempt")
    progress = Progress(kept)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
        holds = known.holds if known is not None else lambda content: False

        def ahead() -> list[tuple[ImageRecord, list[int], Future[Any]]]:
            batch = []
            for path in itertools.islice(left, settings.batch_size):
                sample = listed[path]
                # the stamp is taken before the file is read: a file changed in between is then seen as changed
                batch.append((sample, stamp(path), threads.submit(samples.read, sample, extractor, holds)))
            return batch

        batch = ahead()
        while batch:
            following = ahead()
            journal.append(_embed(batch, extractor, known, settings))
            progress.advance(len(batch))
            batch = following
    progress.finish()


def _embed(
    batch: list[tuple[ImageRecord, list[int], Future[Any]]],
    extractor: FeatureExtractor,
    known: EmbeddingLookup | None,
    settings: Settings,
) -> list[list[Any]]:
    read: list[tuple[bytes, Any, str]] = []
    for _, _, future in batch:
        try:
            read.append((*future.result(), ""))
        except UserError as error:
            read.append((b"", None, getattr(error, "reason", str(error))))
    views = [view for _, view, _ in read if view is not None and not isinstance(view, np.ndarray)]
    made = iter(_cast(extractor.embed(views), settings.precision) if views else ())
    rows: list[list[Any]] = []
    for (sample, marked, _), (content, view, reason) in zip(batch, read, strict=True):
        if reason:
            rows.append([sample.path, marked, reason])
            continue
        result: dict[str, Any] = {"label": sample.label, "split": sample.split, "content": content.hex()}
        if view is not None:
            vector = _cast(view, settings.precision) if isinstance(view, np.ndarray) else next(made)
            result["features"] = base64.b64encode(vector.tobytes()).decode()
        else:
            assert known is not None, "only what is known has no view"
            result["row"] = known.row_of_content(content)
        rows.append([sample.path, marked, result])
    return rows


def _cast(features: npt.NDArray[np.float32], precision: str) -> Features:
    with np.errstate(over="ignore"):
        cast = features.astype(precision)
    if not np.isfinite(cast).all():
        if not np.isfinite(features).all():
            raise UserError("the network gives features that are not finite numbers. Its weights are of no use.")
        raise UserError(
            f"--precision {precision}: holds numbers up to {np.finfo(precision).max:g}. The features reach "
            f"{np.abs(features).max():g}. Use --precision float32."
        )
    return cast


def _tell(journal: Journal, known: EmbeddingLookup | None) -> EmbedSummary:
    told = EmbedSummary()
    for path, _, result in journal.rows():
        was_there = known is not None and known.note_path(path)
        if isinstance(result, str):
            told.unreadable.append((path, result))
            continue
        told.images += 1
        told.computed += "features" in result
        told.changed += was_there and "features" in result
        if known is not None and "row" in result:
            known.note_row(result["row"])
    told.gone = known.gone if known is not None else 0
    return told


def _readable(journal: Journal) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((path, result) for path, _, result in journal.rows() if not isinstance(result, str))


def _decoded(result: dict[str, Any], precision: str) -> Features:
    values: Features = np.frombuffer(base64.b64decode(result["features"]), precision)
    return values


def _fit(journal: Journal, settings: Settings) -> Whitening:
    """On the training images where there are some: what is tested must not have shaped the features."""
    trained = any(result["split"] == "train" for _, result in _readable(journal))
    wanted = (result for _, result in _readable(journal) if not trained or result["split"] == "train")
    vectors = (_decoded(result, settings.precision) for result in wanted)
    return fit_whitening(_stacks(vectors), keep=settings.directions, split="train" if trained else "")


def _stacks(vectors: Iterable[Features]) -> Iterator[Features]:
    vectors = iter(vectors)
    while rows := list(itertools.islice(vectors, _BLOCK)):
        yield np.stack(rows)


def transformed(
    features: npt.NDArray[np.floating[Any]], whitening: Whitening | None, *, normalize: bool
) -> npt.NDArray[np.floating[Any]]:
    """Features as the file has them."""
    values = features if whitening is None else whitening(features)
    return l2_normalize(values) if normalize else values


def _blocks(
    journal: Journal, known: EmbeddingLookup | None, whitening: Whitening | None, settings: Settings
) -> Iterator[Block]:
    rows = _readable(journal)
    while some := list(itertools.islice(rows, _BLOCK)):
        vectors: list[Features | None] = [None] * len(some)
        new = [at for at, (_, result) in enumerate(some) if "features" in result]
        if new:
            raw = np.stack([_decoded(some[at][1], settings.precision) for at in new])
            made = _cast(transformed(raw, whitening, normalize=settings.normalize), settings.precision)
            for at, vector in zip(new, made, strict=True):
                vectors[at] = vector
        yield Block(
            paths=[path for path, _ in some],
            labels=[result["label"] for _, result in some],
            splits=[result["split"] for _, result in some],
            contents=[result["content"] for _, result in some],
            features=np.stack(
                [_there(known, some[at][1]) if vector is None else vector for at, vector in enumerate(vectors)]
            ),
        )


def _there(known: EmbeddingLookup | None, result: dict[str, Any]) -> Features:
    assert known is not None, "a row refers to an earlier file"
    features: Features = known.features[result["row"]]
    return features


def _named(output: Path, whitening: Whitening | None) -> dict[str, Any] | None:
    if whitening is None:
        return None
    place = whitening_path(output)
    metadata = {"file": place.name, "sha256": digest_of(place), "directions": len(whitening.directions)}
    return metadata | {"images": whitening.images, "split": whitening.split}


def unreadable_path(output: Path) -> Path:
    """Where the files that could not be read are listed."""
    return output.with_name(f"{output.stem}.unreadable.csv")


def _list_unreadable(told: EmbedSummary, output: Path, say: Say) -> None:
    place = unreadable_path(output)
    place.unlink(missing_ok=True)
    if told.unreadable:
        write_left_out(told.unreadable, place)
        say(f"{len(told.unreadable)} unreadable files are left out, listed in {place.name}. {_first(told)}")


def _first(told: EmbedSummary) -> str:
    return f"The first: {told.unreadable[0][0]}: {told.unreadable[0][1]}" if told.unreadable else ""
