"""Query images: rows of the embeddings themselves, or files that the same model embeds."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.image_file import UnreadableImage, content_hash, read_image_file
from finetune.embeddings.embeddings import Embeddings, Rows
from finetune.embeddings.files import Features
from finetune.embeddings.lookup import MISSING, EmbeddingLookup
from finetune.embeddings.whitening import Whitening, digest_of, l2_normalize, load_whitening
from finetune.errors import UserError
from finetune.inference.image_paths import find_images

if TYPE_CHECKING:
    from finetune.embeddings.extractor import FeatureExtractor


@dataclass(frozen=True, kw_only=True, eq=False)
class Queries:
    """Queries of a search.

    Args:
        paths: Paths as the user gave them.
        features: (Q, D), transformed like those of the embeddings.
        rows: int64 (Q,), row of the same path, which is excluded from the query's neighbours; -1 for none.
        unreadable: Path and reason of each file that could not be read.
    """

    paths: tuple[str, ...]
    features: Features
    rows: Rows
    unreadable: tuple[tuple[str, str], ...] = ()


class QueryReader:
    """Computes features of images with the model of some embeddings; the model is loaded at the first image they lack.

    Args:
        embeddings: Embeddings to search in.
        file: File of the embeddings; their whitening is beside it.
        model: Function that loads the model that made the embeddings.
    """

    def __init__(self, embeddings: Embeddings, file: Path, model: "Callable[[], FeatureExtractor]") -> None:
        self._embeddings, self._file, self._load = embeddings, file, model
        self._known = EmbeddingLookup(embeddings)
        self._model: FeatureExtractor | None = None
        self._whitening: Whitening | None = None

    def read(self, names: Iterable[str], *, batch_size: int = 32) -> Queries:
        """Return the features of files, or of rows given by their stored names.

        Raises:
            UserError: No query can be read, or the model cannot be loaded.
        """
        paths: list[str] = []
        rows: list[int] = []
        vectors: list[Features] = []
        unreadable: list[tuple[str, str]] = []
        names = iter(names)
        while some := list(itertools.islice(names, batch_size)):
            images: list[tuple[str, int, Any]] = []
            for name in some:
                try:
                    images.append((name, *self._look_up(name)))
                except UnreadableImage as error:
                    unreadable.append((name, error.reason))
            views = [view for _, _, view in images if not isinstance(view, np.ndarray)]
            embedded = iter(self._embed(views) if views else ())
            for name, row, view in images:
                paths.append(name)
                rows.append(row)
                vectors.append(view if isinstance(view, np.ndarray) else next(embedded))
        if not paths:
            why = f" The first: {unreadable[0][0]}: {unreadable[0][1]}" if unreadable else ""
            raise UserError(f"QUERY: no image could be read.{why}")
        return Queries(
            paths=tuple(paths), features=np.stack(vectors), rows=np.array(rows, np.int64), unreadable=tuple(unreadable)
        )

    def names(self, words: Iterable[str]) -> Iterator[str]:
        """Expand files and folders of a command line to images; a stored name that is not a file stands for its row."""
        for word in words:
            if not Path(word).expanduser().exists() and self._known.row_of_path(word) != MISSING:
                yield word
            else:
                yield from find_images([word])

    def _look_up(self, name: str) -> tuple[int, Any]:
        """Return the row of a path, and its features if they are known, else the view to embed."""
        row = self._known.row_of_path(name)
        if row != MISSING and not Path(name).is_file():
            return row, self._row(row)
        absolute = str(Path(name).absolute())
        row = self._known.row_of_path(absolute)
        data = read_image_file(name)
        same = self._known.row_of_content(content_hash(data).tobytes())
        if same != MISSING:
            return row, self._row(same)
        return row, self._model_of().read(data, name)

    def _row(self, row: int) -> Features:
        return np.asarray(self._embeddings.features[row])

    def _model_of(self) -> "FeatureExtractor":
        if self._model is None:
            self._embeddings.require_metadata(
                "QUERY", "model", "stage", "reading", "precision", "normalize", "whitening"
            )
            self._whitening = whitening_of(self._embeddings, self._file)
            self._model = self._load()
        return self._model

    def _embed(self, views: list[Any]) -> Features:
        metadata = self._embeddings.metadata
        features: Features = self._model_of().embed(views).astype(metadata["precision"])
        values = features if self._whitening is None else self._whitening(features)
        return (l2_normalize(values) if metadata["normalize"] else values).astype(metadata["precision"])


def whitening_of(embeddings: Embeddings, file: Path) -> Whitening | None:
    """Return the whitening that was applied to embeddings, or None.

    Raises:
        UserError: The whitening is no longer beside the embeddings.
    """
    named = embeddings.metadata.get("whitening")
    if not named:
        return None
    # only the name: a file of embeddings must not choose which files of this machine are read
    place = file.parent / Path(str(named.get("file"))).name
    whitening, _ = load_whitening(place)
    if digest_of(place) != named.get("sha256"):
        raise UserError(f"{place}: is not the whitening that {file.name} was made with. Make the embeddings again.")
    return whitening
