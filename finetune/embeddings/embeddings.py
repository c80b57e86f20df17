"""Embeddings: features of images, with each image's path, label, split and content hash, and metadata of their origin."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.counted import counted
from finetune.data.index import SPLITS, natural_order
from finetune.data.path_table import PathTable, path_table
from finetune.embeddings.files import Block, Features, open_embeddings, write_embeddings
from finetune.errors import UserError
from finetune.html import MOST_ROWS, html_table

# N = images, D = features

Rows = npt.NDArray[np.int64]

PRECISIONS = ("float16", "float32")
NO_LABEL = NO_SPLIT = -1
# joins the labels of one image, as finetune.data.manifest writes them
SEPARATOR = "|"


class EmbeddingsError(UserError):
    """Raised for embeddings that do not suit what is asked of them, by code that does not know their file.

    Args:
        problem: Message without the name of the file, which :func:`errors_naming` adds.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"EMBEDDINGS: {problem}")
        self.problem = problem


@contextmanager
def errors_naming(path: str | Path) -> Iterator[None]:
    """Name the file of embeddings in the messages about them."""
    try:
        yield
    except EmbeddingsError as error:
        raise UserError(f"EMBEDDINGS='{path}': {error.problem}") from error


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Embeddings:
    """Features of images, one row per image.

    Args:
        features: float16 or float32 (N, D); memory-mapped if read from a file.
        paths: Paths of the images.
        labels: int32 (N,), position in ``classes``, -1 for none.
        classes: Names of the labels that occur or may occur.
        splits: int8 (N,), position in ``SPLITS``, -1 for none.
        content: uint64 (N, 2), 128 bits that identify the content of each image.
        metadata: Origin of the features: model, stage, transforms, data; plain JSON values.
    """

    features: Features
    paths: PathTable
    labels: npt.NDArray[np.int32]
    classes: tuple[str, ...]
    splits: npt.NDArray[np.int8]
    content: npt.NDArray[np.uint64]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.features.ndim == 2, "features are (N, D)"
        rows = {len(column) for column in (self.features, self.paths, self.labels, self.splits, self.content)}
        assert len(rows) == 1, "the columns must be equally long"

    def __repr__(self) -> str:
        """Return the size of the features and where they come from; the columns have the rest."""
        labels = f", labels of {counted(len(self.classes), 'class', 'classes')}" if self.classes else ", no labels"
        stage = self.metadata.get("stage")
        return (
            f"Embeddings({counted(len(self), 'image')} x {self.num_features} features"
            f"{f' below the head, after {stage}' if stage else ''}, {self.features.dtype}{labels})"
        )

    def _repr_html_(self) -> str:
        rows = [(self.paths[row], self.label(row), self.split(row)) for row in range(min(len(self), MOST_ROWS))]
        return html_table(["image", "label", "split"], rows, caption=repr(self))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_features(self) -> int:
        """Number of features, D."""
        return int(self.features.shape[1])

    @property
    def multi_label(self) -> bool:
        """Tell whether a label may be several labels joined by ``|``."""
        return bool(self.metadata.get("multi_label"))

    def rows(self, split: str) -> Rows:
        """Return the row numbers of one split, ascending.

        Raises:
            UserError: There is no such split.
        """
        if split not in SPLITS:
            raise UserError(f"split={split!r}: must be one of {', '.join(SPLITS)}.")
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def labelled_rows(self) -> Rows:
        """Return the row numbers of the images that have a label."""
        return np.flatnonzero(self.labels != NO_LABEL)

    def label(self, row: int) -> str:
        """Return the name of a row's label; empty for none."""
        return self.classes[self.labels[row]] if self.labels[row] != NO_LABEL else ""

    def split(self, row: int) -> str:
        """Return the name of a row's split; empty for none."""
        return SPLITS[self.splits[row]] if self.splits[row] != NO_SPLIT else ""

    def content_hashes(self, rows: Rows | slice = slice(None)) -> list[str]:
        """Return the content hashes of rows in hexadecimal, as files store them."""
        return [line.tobytes().hex() for line in self.content[rows]]

    def take(self, rows: Rows) -> "Embeddings":
        """Return the given rows, in the given order."""
        return Embeddings(
            features=self.features[rows],
            paths=self.paths.take(rows),
            labels=self.labels[rows],
            classes=self.classes,
            splits=self.splits[rows],
            content=self.content[rows],
            metadata=self.metadata,
        )

    def require_labels(self, what: str) -> None:
        """Check that images have labels, one each, of at least two classes.

        Raises:
            UserError: The labels do not meet these conditions.
        """
        if self.multi_label:
            raise EmbeddingsError(f"{what} needs one label per image. These images have several.")
        if len(np.unique(self.labels[self.labelled_rows()])) < 2:
            raise EmbeddingsError(
                f"{what} needs labelled images of at least two classes. Labels come with data=..., "
                "for example: finetune embed RUN data=DIR --output FILE"
            )

    def require_metadata(self, what: str, *keys: str) -> None:
        """Check that the metadata has the given keys about the origin of the features.

        Raises:
            UserError: A key is missing.
        """
        # only the whitening may be null, which says that there is none
        missing = [
            key for key in keys if self.metadata.get(key) is None and (key != "whitening" or key not in self.metadata)
        ]
        if missing:
            raise EmbeddingsError(
                f"{what} needs to know what made them. Their record lacks {', '.join(missing)}. Make them with "
                "finetune embed."
            )

    @classmethod
    def load(cls, path: str | Path) -> "Embeddings":
        """Open a file of ``finetune embed``; the features stay on disk.

        Raises:
            UserError: The file is missing, damaged, or not a file of embeddings.
        """
        with open_embeddings(Path(path).expanduser()) as stored:
            return collect(stored.blocks, features=stored.features, metadata=stored.metadata)

    def save(self, path: str | Path) -> None:
        """Write the embeddings atomically as ``.npz`` or ``.parquet``.

        Raises:
            UserError: The path has another suffix.
        """
        write_embeddings(Path(path).expanduser(), self.blocks(), metadata=self.metadata)

    def blocks(self, size: int = 8192) -> Iterator[Block]:
        """Yield all rows in blocks of at most ``size``."""
        for start in range(0, len(self), size):
            rows = range(start, min(start + size, len(self)))
            yield Block(
                paths=[self.paths[row] for row in rows],
                labels=[self.label(row) for row in rows],
                splits=[self.split(row) for row in rows],
                contents=self.content_hashes(slice(rows.start, rows.stop)),
                features=self.features[rows.start : rows.stop],
            )


def collect(blocks: Iterable[Block], *, features: Features | None, metadata: Mapping[str, Any]) -> Embeddings:
    """Build embeddings from blocks, joining the blocks' features unless features are given.

    Args:
        blocks: Blocks of rows, in order.
        features: Features of all rows; None joins those of the blocks.
        metadata: Origin of the features.
    """
    known: dict[str, int] = {}
    labels, splits, contents, parts = [], [], [], []

    def paths() -> Iterator[str]:
        for block in blocks:
            labels.append(np.array([known.setdefault(name, len(known)) for name in block.labels], np.int32))
            numbers = [SPLITS.index(name) if name in SPLITS else NO_SPLIT for name in block.splits]
            splits.append(np.array(numbers, np.int8))
            if any(len(content) != 32 for content in block.contents):
                raise ValueError("The digest of an image's content must have 32 hexadecimal digits.")
            contents.append(bytes.fromhex("".join(block.contents)))
            if features is None:
                parts.append(block.features)
            yield from block.paths

    table = path_table(paths())
    codes = np.concatenate(labels) if labels else np.zeros(0, np.int32)
    classes = list(metadata.get("classes") or [])
    classes += natural_order(name for name in known if name and name not in classes)
    place = {name: number for number, name in enumerate(classes)}
    renumbered = np.array([place.get(name, NO_LABEL) for name in known] or [NO_LABEL], np.int32)
    if features is None:
        features = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    return Embeddings(
        features=features,
        paths=table,
        labels=renumbered[codes],
        classes=tuple(classes),
        splits=np.concatenate(splits) if splits else np.zeros(0, np.int8),
        content=np.frombuffer(b"".join(contents), np.uint64).reshape(-1, 2),
        metadata=metadata,
    )
