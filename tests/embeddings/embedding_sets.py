"""Embeddings made in the test, and a fake extractor whose features are a function of a file's bytes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from finetune.data.decode import DecodeOptions
from finetune.data.image_file import UnreadableImage, content_hash
from finetune.data.path_table import path_table
from finetune.embeddings.embeddings import Embeddings
from finetune.embeddings.files import Features
from finetune.embeddings.image_records import ImageRecord


def embeddings_of(
    features: Features, labels: list[int] | None = None, splits: list[int] | None = None, **metadata: Any
) -> Embeddings:
    """Build embeddings of images ``set/<row>``, each with a different content hash."""
    count = len(features)
    names = [f"set/{row}" for row in range(count)]
    classes = tuple(f"class {number}" for number in range(max(labels, default=-1) + 1)) if labels is not None else ()
    return Embeddings(
        features=features,
        paths=path_table(names),
        labels=np.array(labels if labels is not None else [-1] * count, np.int32),
        classes=classes,
        splits=np.array(splits if splits is not None else [-1] * count, np.int8),
        content=np.stack([content_hash(name.encode()) for name in names]),
        metadata=metadata,
    )


def digits() -> Embeddings:
    """The pixels of scikit-learn's digits as features: neighbours in this set mostly agree."""
    data = load_digits()
    return embeddings_of(data.data.astype(np.float32), data.target.tolist())


# start of every file that the fake reads as an image
SIGNATURE = "GIF89a"


class FakeExtractor:
    """Three features of a file's bytes; counts the images it computes, and can fail after a number of them."""

    def __init__(self, *, name: str = "fake", dies_after: int = 10**9, scale: float = 1.0) -> None:
        self.decode_options = DecodeOptions()
        self.identity: dict[str, Any] = {
            "model": {"hash": name},
            "stage": "top",
            "reading": self.decode_options.to_plain(),
        }
        self.model: dict[str, Any] = {"hash": name, "run": None}
        self.stages = ("stem", "top")
        self.scale, self.left = scale, dies_after
        self.computed: list[bytes] = []

    def read(self, data: bytearray, path: str) -> bytes:
        content = bytes(data).removeprefix(SIGNATURE.encode())
        if content.startswith(b"bad"):
            raise UnreadableImage(path, "It is bad.")
        return content

    def embed(self, views: list[bytes]) -> Features:
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= len(views)
        self.computed += views
        digests = [np.frombuffer(content_hash(view).tobytes()[:3], np.uint8) for view in views]
        return np.stack(digests).astype(np.float32) * self.scale


class MemoryRecords:
    """A number of images that are not files, in three classes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.identity: dict[str, Any] = {"data": f"memory {count}"}
        self.metadata: dict[str, Any] = {"data": None, "fingerprint": None, "classes": None, "multi_label": False}

    def __iter__(self) -> Iterator[ImageRecord]:
        for row in range(self.count):
            yield ImageRecord(path=f"memory/{row}", label=str(row % 3), split="train" if row % 2 else "test", row=row)

    def read(
        self, sample: ImageRecord, extractor: Any, is_known: Callable[[bytes], bool]
    ) -> tuple[bytes, bytes | None]:
        data = str(sample.row).encode()
        content = content_hash(data).tobytes()
        return content, None if is_known(content) else data
