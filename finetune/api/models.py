"""Trained models in Python: load and save them, compute features, search."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.extractor import FeatureExtractor
    from finetune.embeddings.search import Neighbours
    from finetune.inference.trained_model import TrainedModel
    from finetune.models.classifier import Classifier


def load(path: str | Path, *, modules: "Mapping[str, nn.Module] | None" = None, trust: bool = False) -> "TrainedModel":
    """Load a trained model from a bundle folder or a run folder.

    Args:
        path: A bundle folder, or a run folder that has one.
        modules: A module of each class of your own that the model needs, built with the arguments that it had in training:
            ``{"head": MyHead(512, 3), "backbone": MyNet()}``. The weights are loaded into these modules, strictly.
        trust: Import and build the classes that the bundle names, where a configuration named them (``head._target_``).
            That runs code chosen by whoever made the bundle.

    Returns:
        A module in evaluation mode: ``uint8 (B, C, H, W)`` to logits ``(B, K)``, with ``classes`` and ``input_spec``. Images
        that do not have the input size are resized and cropped as the bundle says; a batch of exactly that size is taken to be
        resized and cropped already. ``model.predict(images)`` takes paths, Pillow images, arrays, tensors and data frames, and
        resizes and crops every image, whatever its size, as ``finetune predict`` does.

    Raises:
        UserError: There is no complete bundle, or it needs classes of your own that were not given; the message names them.
    """
    from finetune.bundle import load_bundle
    from finetune.commands.own_modules import modules_of
    from finetune.inference.decode_options import decode_options_of
    from finetune.inference.trained_model import trained_model

    given = dict(modules or {})
    if trust:
        given |= modules_of(path, trust=True, given=given)
    return trained_model(load_bundle(path, modules=given), decode=decode_options_of(path))


def save_bundle(model: "Classifier", folder: str | Path) -> Path:
    """Write a model as a bundle: weights as safetensors, the rest as JSON and a model card; nothing is pickled.

    A bundle with modules of your own names their classes; give :func:`load` a module of each.

    Args:
        model: Model from :func:`build_classifier` or :func:`load`, trained since or not.
        folder: Folder of the bundle, created if missing; a bundle in it is replaced.

    Returns:
        The folder.

    Raises:
        UserError: A module keeps state that is not a tensor, or ``model`` is not a classifier.
    """
    from finetune.bundle import save_bundle as save
    from finetune.errors import UserError
    from finetune.models.classifier import Classifier

    if not isinstance(model, Classifier):
        raise UserError(
            f"model: must be what finetune.build_classifier returns. It is a {type(model).__name__}. Save the classifier "
            "inside it."
        )
    return save(model, folder)


def embed(
    model: "Classifier | FeatureExtractor | str | Path",
    images: "Tensor | str | Path | Sequence[str | Path]",
    *,
    stage: str | None = None,
    normalize: bool = False,
    batch_size: int = 32,
) -> "Embeddings":
    """Compute features of images in memory; ``finetune embed`` writes those of many images to a file.

    Args:
        model: A run or bundle folder, a model from :func:`load`, or a :class:`finetune.embeddings.extractor.FeatureExtractor`.
        images: uint8 (B, C, H, W), or what ``finetune predict`` takes: files, folders, patterns, lists.
        stage: Stage whose output is pooled; None takes the features below the head.
        normalize: Whether to scale the features to length one.
        batch_size: Images in one forward pass.

    Raises:
        UserError: There is no such model, stage or image, or an image cannot be read.
    """
    from finetune.embeddings.in_memory import embed_in_memory

    return embed_in_memory(model, images, stage=stage, normalize=normalize, batch_size=batch_size)


def search(
    embeddings: "Embeddings",
    queries: "Embeddings | npt.NDArray[np.floating[Any]]",
    k: int = 5,
    *,
    metric: str = "cosine",
) -> "Neighbours":
    """Find the k nearest embeddings of each query, by exact search: ``rows`` and ``distances``, both (Q, k).

    Args:
        embeddings: Embeddings to search.
        queries: Embeddings by the same model, or their features (Q, D).
        k: Number of neighbours of each query.
        metric: ``cosine`` or ``l2``.

    Raises:
        UserError: The widths differ, or a setting is out of range.
    """
    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.search import nearest

    wanted = queries.features if isinstance(queries, Embeddings) else queries
    return nearest(embeddings.features, wanted, k, metric=metric)
