"""Embeddings of a few images, without a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.data.content_hash import content_of_bytes
from finetune.data.decode import read_file
from finetune.errors import UserError
from finetune.inference.embedder import Embedder, embedder_of_classifier, embedder_of_run
from finetune.inference.embeddings import Block, Embeddings, collect
from finetune.inference.image_paths import find_images
from finetune.inference.whitening import scaled_to_one
from finetune.models.classifier import Classifier
from finetune.versions import versions

Images = Tensor | str | Path | Sequence[str | Path]


def embed_in_memory(
    model: Classifier | Embedder | str | Path,
    images: Images,
    *,
    stage: str | None = None,
    normalize: bool = False,
    batch_size: int = 32,
) -> Embeddings:
    """See :func:`finetune.api.embed`."""
    embedder = _embedder(model, stage)
    about = {
        **embedder.identity,
        "model": embedder.model,
        "stages": list(embedder.stages),
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
    }

    def blocks() -> Iterator[Block]:
        batch: list[tuple[str, bytes, Tensor]] = []
        for image in _views(images, embedder):
            batch.append(image)
            if len(batch) == batch_size:
                yield _block(batch, embedder, normalize=normalize)
                batch.clear()
        if batch:
            yield _block(batch, embedder, normalize=normalize)

    found = collect(blocks(), features=None, about=about)
    if not len(found):
        raise UserError("images: there are none.")
    return found


def _embedder(model: Classifier | Embedder | str | Path, stage: str | None) -> Embedder:
    if isinstance(model, Classifier):
        return embedder_of_classifier(model, stage=stage)
    if not isinstance(model, Embedder):
        return embedder_of_run(model, stage=stage)
    if stage not in (None, model.stage):
        raise UserError(f"stage={stage!r}: this embedder was made for {model.stage!r}.")
    return model


def _views(images: Images, embedder: Embedder) -> Iterator[tuple[str, bytes, Tensor]]:
    """Name, content and view of each image."""
    if not isinstance(images, Tensor):
        several = [images] if isinstance(images, str | Path) else images
        for path in find_images(several):
            data = read_file(path)
            yield str(Path(path).absolute()), content_of_bytes(data).tobytes(), embedder.read(data, path)
        return
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] != embedder.spec.channels:
        raise UserError(
            f"images of type {images.dtype} and shape {tuple(images.shape)}: must be uint8 "
            f"(B, {embedder.spec.channels}, H, W)."
        )
    for number, image in enumerate(images):
        content = content_of_bytes(repr(tuple(image.shape)).encode() + image.numpy().tobytes())
        yield f"image/{number}", content.tobytes(), embedder.view(image)


def _block(batch: list[tuple[str, bytes, Tensor]], embedder: Embedder, *, normalize: bool) -> Block:
    features = embedder.embed([view for _, _, view in batch])
    return Block(
        paths=[path for path, _, _ in batch],
        labels=[""] * len(batch),
        splits=[""] * len(batch),
        contents=[content.hex() for _, content, _ in batch],
        features=np.asarray(scaled_to_one(features) if normalize else features),
    )
