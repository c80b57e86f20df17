"""The images to embed, with what is known of each: files named on the command line, or the samples of a data set."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from finetune.data.content_hash import content_of_bytes
from finetune.data.decode import read_file
from finetune.data.image_source import Source
from finetune.data.index import SPLITS
from finetune.embeddings.embeddings import SEPARATOR
from finetune.embeddings.extractor import FeatureExtractor
from finetune.errors import UserError, shortened


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image to embed.

    Args:
        path: Absolute, or the stable name of a sample that is no file.
        label: Its class; several are joined by ``|``; empty for none.
        split: ``train``, ``val``, ``test`` or empty.
        row: Its number in the data set.
    """

    path: str
    label: str = ""
    split: str = ""
    row: int = 0


class ImageRecords(Protocol):
    """Images in an order that stays the same, and a way to read them; read from several threads."""

    @property
    def identity(self) -> dict[str, Any]:
        """What their labels and splits depend on, as plain JSON values."""
        ...

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file of embeddings says of them."""
        ...

    def __iter__(self) -> Iterator[ImageRecord]:
        """All of them."""
        ...

    def read(
        self, sample: ImageRecord, extractor: FeatureExtractor, is_known: Callable[[bytes], bool]
    ) -> tuple[bytes, Tensor | npt.NDArray[np.float32] | None]:
        """Read the content (16 bytes) and the view of an image, or its features (D,) where they are there already.

        The view is None where it is not needed, its content being known.

        Raises:
            UnreadableImage: It cannot be read.
        """
        ...


class FileRecords:
    """Files, without labels.

    Args:
        paths: As :func:`finetune.inference.image_paths.find_images` finds them.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = paths
        self.identity: dict[str, Any] = {"data": "files"}
        self.metadata: dict[str, Any] = {"data": None, "fingerprint": None, "classes": None, "multi_label": False}

    def __iter__(self) -> Iterator[ImageRecord]:
        """All of them, once."""
        for path in self._paths:
            yield ImageRecord(path=str(Path(path).absolute()))

    def read(
        self, sample: ImageRecord, extractor: FeatureExtractor, is_known: Callable[[bytes], bool]
    ) -> tuple[bytes, Tensor | npt.NDArray[np.float32] | None]:
        """The file is read, and decoded where its content is new."""
        data = read_file(sample.path, max_pixels=extractor.reading["max_pixels"])
        content = content_of_bytes(data).tobytes()
        return content, None if is_known(content) else extractor.read(data, sample.path)


class DatasetRecords:
    """The samples of a data set, with labels and splits.

    Args:
        source: The data set.
        data: Its configuration, recorded so that its images can be shown later.
        cached: Gives the features (D,) of a row that training has computed already, or None.

    Raises:
        UserError: Several labels an image could not be told apart again.
    """

    def __init__(
        self,
        source: Source,
        *,
        data: dict[str, Any] | None = None,
        cached: Callable[[int], npt.NDArray[np.float32] | None] = lambda row: None,
    ) -> None:
        self._source, self._cached = source, cached
        index = source.index
        if index.multi_label and (joined := [name for name in index.classes if SEPARATOR in name]):
            raise UserError(f"data: class names must not hold {SEPARATOR!r}. SearchHit {shortened(joined)}. Rename.")
        self.identity: dict[str, Any] = {"data": index.fingerprint()}
        self.metadata: dict[str, Any] = {
            "data": data,
            "fingerprint": index.fingerprint(),
            "skipped": len(index.skipped),
            "classes": None if index.multi_label else list(index.classes),
            "multi_label": index.multi_label,
        }

    def __iter__(self) -> Iterator[ImageRecord]:
        """All of them, in the order of the index."""
        index = self._source.index
        for row in range(len(index)):
            target = index.targets[row]
            if index.multi_label:
                label = SEPARATOR.join(name for name, shown in zip(index.classes, target, strict=True) if shown)
            else:
                label = index.classes[int(target)]
            yield ImageRecord(path=index.path(row), label=label, split=SPLITS[index.splits[row]], row=row)

    def read(
        self, sample: ImageRecord, extractor: FeatureExtractor, is_known: Callable[[bytes], bool]
    ) -> tuple[bytes, Tensor | npt.NDArray[np.float32] | None]:
        """The content is in the index; the image is read where it is new."""
        content = self._source.index.content[sample.row].tobytes()
        if is_known(content):
            return content, None
        if (features := self._cached(sample.row)) is not None:
            return content, features
        return content, extractor.view(self._source.read(sample.row, at_least=extractor.view.at_least))
