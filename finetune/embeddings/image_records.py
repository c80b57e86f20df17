"""The images to embed, with their labels and splits: files from the command line, or images of a data set."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from finetune.data.image_file import content_hash, read_image_file
from finetune.data.image_source import Source
from finetune.data.index import SPLITS
from finetune.embeddings.embeddings import SEPARATOR
from finetune.embeddings.extractor import FeatureExtractor
from finetune.errors import UserError, shortened
from finetune.plain import Json


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image to embed.

    Args:
        path: Absolute path, or the stable name of an image that is not a file.
        label: Class of the image; several are joined by ``|``; empty for none.
        split: ``train``, ``val``, ``test`` or empty.
        row: Row of the image in the data set.
    """

    path: str
    label: str = ""
    split: str = ""
    row: int = 0


class ImageRecords(Protocol):
    """Images in a stable order, and a way to read them from several threads."""

    @property
    def identity(self) -> Mapping[str, Json]:
        """Values that labels and splits depend on, as plain JSON values."""
        ...

    @property
    def metadata(self) -> Mapping[str, Json]:
        """Metadata about the images, for the file of embeddings."""
        ...

    def __iter__(self) -> Iterator[ImageRecord]:
        """Yield all records."""
        ...

    def read(
        self, sample: ImageRecord, extractor: FeatureExtractor, is_known: Callable[[bytes], bool]
    ) -> tuple[bytes, Tensor | npt.NDArray[np.float32] | None]:
        """Read the content hash (16 bytes) and the view of an image, or its features (D,) if they are cached.

        The view is None if the content is known, because it is not needed then.

        Raises:
            UnreadableImage: The image cannot be read.
        """
        ...


class FileRecords:
    """Image files without labels.

    Args:
        paths: Paths as :func:`finetune.inference.image_paths.find_images` yields them.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = paths
        self.identity: Mapping[str, Json] = {"data": "files"}
        self.metadata: Mapping[str, Json] = {"data": None, "fingerprint": None, "classes": None, "multi_label": False}

    def __iter__(self) -> Iterator[ImageRecord]:
        """Yield all records, once."""
        for path in self._paths:
            yield ImageRecord(path=str(Path(path).absolute()))

    def read(
        self, sample: ImageRecord, extractor: FeatureExtractor, is_known: Callable[[bytes], bool]
    ) -> tuple[bytes, Tensor | npt.NDArray[np.float32] | None]:
        """Read the file, and decode it only if its content is new."""
        data = read_image_file(sample.path, max_pixels=extractor.decode_options.max_pixels)
        content = content_hash(data).tobytes()
        return content, None if is_known(content) else extractor.read(data, sample.path)


class DatasetRecords:
    """Images of a data set, with labels and splits.

    Args:
        source: Data set.
        data: Configuration of the data set, recorded so that its images can be shown later.
        cached: Function that returns the features (D,) of a row if training has cached them, else None.

    Raises:
        UserError: Joined labels could not be separated again, because a class name holds the separator.
    """

    def __init__(
        self,
        source: Source,
        *,
        data: Mapping[str, Json] | None = None,
        cached: Callable[[int], npt.NDArray[np.float32] | None] = lambda row: None,
    ) -> None:
        self._source, self._cached = source, cached
        index = source.index
        if index.multi_label and (joined := [name for name in index.classes if SEPARATOR in name]):
            raise UserError(
                f"data: class names must not hold {SEPARATOR!r}. Found: {shortened(joined)}. Rename these classes."
            )
        self.identity: Mapping[str, Json] = {"data": index.fingerprint()}
        self.metadata: Mapping[str, Json] = {
            "data": data,
            "fingerprint": index.fingerprint(),
            "skipped": len(index.skipped),
            "classes": None if index.multi_label else list(index.classes),
            "multi_label": index.multi_label,
        }

    def __iter__(self) -> Iterator[ImageRecord]:
        """Yield all records, in the order of the index."""
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
        """Take the content hash from the index, and read the image only if its content is new."""
        content = self._source.index.content[sample.row].tobytes()
        if is_known(content):
            return content, None
        if (features := self._cached(sample.row)) is not None:
            return content, features
        return content, extractor.view(self._source.read(sample.row, min_side=extractor.view.min_side))
