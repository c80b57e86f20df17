"""Embed a few images in memory, without a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.image_file import content_hash, read_image_file
from finetune.data.python_images import pixels_of
from finetune.embeddings.embeddings import Embeddings, collect
from finetune.embeddings.extractor import FeatureExtractor
from finetune.embeddings.files import Block
from finetune.embeddings.image_records import DatasetRecords
from finetune.embeddings.whitening import l2_normalize
from finetune.errors import UserError
from finetune.inference.given_images import one_by_one
from finetune.versions import versions


def embed_in_memory(
    extractor: FeatureExtractor,
    images: Any,
    *,
    normalize: bool = False,
    batch_size: int = 32,
) -> Embeddings:
    """Embed images in memory; see :func:`finetune.embed`.

    Args:
        extractor: Network.
        images: Images in any form, or the records of a data set, which have labels and splits.
        normalize: Whether to scale the features to length one.
        batch_size: Images in one forward pass.

    Raises:
        UserError: There is no image, or one cannot be read.
    """
    metadata = {
        **extractor.identity,
        "model": extractor.model,
        "stages": list(extractor.stages),
        "normalize": normalize,
        "whiten": False,
        "directions": None,
        "precision": "float32",
        "whitening": None,
        "data": None,
        "fingerprint": None,
        "classes": None,
        "multi_label": False,
        "versions": versions(),
        **(images.metadata if isinstance(images, DatasetRecords) else {}),
    }

    def blocks() -> Iterator[Block]:
        batch: list[_Image] = []
        for image in _views(images, extractor):
            batch.append(image)
            if len(batch) == batch_size:
                yield _block(batch, extractor, normalize=normalize)
                batch.clear()
        if batch:
            yield _block(batch, extractor, normalize=normalize)

    embeddings = collect(blocks(), features=None, metadata=metadata)
    if not len(embeddings):
        raise UserError("images: there are none.")
    return embeddings


@dataclass(frozen=True, kw_only=True)
class _Image:
    path: str
    content: bytes
    view: Tensor
    label: str = ""
    split: str = ""


def _views(images: Any, extractor: FeatureExtractor) -> Iterator[_Image]:
    if isinstance(images, DatasetRecords):
        for record in images:
            content, view = images.read(record, extractor, lambda content: False)
            assert isinstance(view, Tensor), "no features are cached, and no content is known"
            yield _Image(path=record.path, content=content, view=view, label=record.label, split=record.split)
        return
    if not isinstance(images, Tensor):
        for name, image in one_by_one(images):
            if isinstance(image, str):
                data = read_image_file(image, max_pixels=extractor.decode_options.max_pixels)
                path, content = str(Path(image).absolute()), content_hash(data).tobytes()
                yield _Image(path=path, content=content, view=extractor.read(data, image))
            else:
                pixels_HWC = pixels_of(image, name, extractor.decode_options)
                content = content_hash(repr(pixels_HWC.shape).encode() + pixels_HWC.tobytes()).tobytes()
                yield _Image(path=name.replace(" ", "/"), content=content, view=extractor.view.of_pixels(pixels_HWC))
        return
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] != extractor.spec.channels:
        raise UserError(
            f"images of type {images.dtype} and shape {tuple(images.shape)}: must be uint8 "
            f"(B, {extractor.spec.channels}, H, W)."
        )
    for number, image in enumerate(images):
        digest = content_hash(repr(tuple(image.shape)).encode() + image.numpy().tobytes())
        yield _Image(path=f"image/{number}", content=digest.tobytes(), view=extractor.view(image))


def _block(batch: list[_Image], extractor: FeatureExtractor, *, normalize: bool) -> Block:
    features = extractor.embed([image.view for image in batch])
    return Block(
        paths=[image.path for image in batch],
        labels=[image.label for image in batch],
        splits=[image.split for image in batch],
        contents=[image.content.hex() for image in batch],
        features=np.asarray(l2_normalize(features) if normalize else features),
    )
