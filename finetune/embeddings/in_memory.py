"""Embed a few images in memory, without a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune.data.image_file import content_hash, read_image_file
from finetune.embeddings.embeddings import Embeddings, collect
from finetune.embeddings.extractor import FeatureExtractor, extractor_from_classifier, extractor_from_run
from finetune.embeddings.files import Block
from finetune.embeddings.whitening import l2_normalize
from finetune.errors import UserError
from finetune.inference.image_paths import find_images
from finetune.models.classifier import Classifier
from finetune.versions import versions

Images = Tensor | str | Path | Sequence[str | Path]


def embed_in_memory(
    model: Classifier | FeatureExtractor | str | Path,
    images: Images,
    *,
    stage: str | None = None,
    normalize: bool = False,
    batch_size: int = 32,
) -> Embeddings:
    """Embed images in memory; see :func:`finetune.embed`."""
    extractor = _extractor(model, stage)
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
    }

    def blocks() -> Iterator[Block]:
        batch: list[tuple[str, bytes, Tensor]] = []
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


def _extractor(model: Classifier | FeatureExtractor | str | Path, stage: str | None) -> FeatureExtractor:
    if isinstance(model, Classifier):
        return extractor_from_classifier(model, stage=stage)
    if not isinstance(model, FeatureExtractor):
        return extractor_from_run(model, stage=stage)
    if stage not in (None, model.stage):
        raise UserError(f"stage={stage!r}: this extractor was made for {model.stage!r}.")
    return model


def _views(images: Images, extractor: FeatureExtractor) -> Iterator[tuple[str, bytes, Tensor]]:
    """Yield name, content hash and view of each image."""
    if not isinstance(images, Tensor):
        several = [images] if isinstance(images, str | Path) else images
        for path in find_images(several):
            data = read_image_file(path, max_pixels=extractor.decode.max_pixels)
            yield str(Path(path).absolute()), content_hash(data).tobytes(), extractor.read(data, path)
        return
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] != extractor.spec.channels:
        raise UserError(
            f"images of type {images.dtype} and shape {tuple(images.shape)}: must be uint8 "
            f"(B, {extractor.spec.channels}, H, W)."
        )
    for number, image in enumerate(images):
        content = content_hash(repr(tuple(image.shape)).encode() + image.numpy().tobytes())
        yield f"image/{number}", content.tobytes(), extractor.view(image)


def _block(batch: list[tuple[str, bytes, Tensor]], extractor: FeatureExtractor, *, normalize: bool) -> Block:
    features = extractor.embed([view for _, _, view in batch])
    return Block(
        paths=[path for path, _, _ in batch],
        labels=[""] * len(batch),
        splits=[""] * len(batch),
        contents=[content.hex() for _, content, _ in batch],
        features=np.asarray(l2_normalize(features) if normalize else features),
    )
