"""The same path from Python: what the commands do, as functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.extractor import FeatureExtractor
    from finetune.embeddings.search import Neighbours
    from finetune.models.classifier import Classifier
    from finetune.training.results import RunResult


def fit(
    *,
    data: str | Path,
    backbone: str = "resnet18",
    schedule: str = "gradual",
    weights: str | Path | None = None,
    run_dir: str | Path | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> "RunResult":
    """Train, test and write the bundle, as ``finetune train`` does.

    Args:
        data: A folder of images (``DIR/<class>/*`` or ``DIR/{train,val,test}/<class>/*``), or ``"digits"``.
        backbone: A choice of ``conf/backbone``.
        schedule: A choice of ``conf/schedule``.
        weights: Where the backbone's weights come from; None takes the configuration's.
        run_dir: A new folder; None makes one under ``runs/``.
        seed: Of all randomness.
        overrides: Whatever else the command line takes, for instance ``["schedule.phases.1.epochs=5"]``.

    Returns:
        ``run_dir``, ``bundle`` and ``results`` of the run.

    Raises:
        UserError: The configuration, the data or the weights are not right.
        RunError: Training could not go on.
    """
    from finetune.commands.train import train
    from finetune.config import compose, quoted

    words = ["data=digits"] if str(data) == "digits" else ["data=folder", f"data.root={quoted(data)}"]
    words += [f"backbone={backbone}", f"schedule={schedule}", f"seed={seed}"]
    words += [] if weights is None else [f"backbone.weights={quoted(weights)}"]
    words += [] if run_dir is None else [f"run_dir={quoted(run_dir)}"]
    return train(compose([*words, *overrides]))


def load(path: str | Path) -> "Classifier":
    """A trained model from a bundle folder or a run folder.

    Returns:
        A module in evaluation mode: ``uint8 (B, C, H, W)`` to logits ``(B, K)``, with ``classes`` and ``input_spec``.

    Raises:
        UserError: There is no whole bundle.
    """
    from finetune.bundle import load_bundle

    return load_bundle(path)


def embed(
    model: "Classifier | FeatureExtractor | str | Path",
    images: "Tensor | str | Path | Sequence[str | Path]",
    *,
    stage: str | None = None,
    normalize: bool = False,
    batch_size: int = 32,
) -> "Embeddings":
    """Features of images, in memory; ``finetune embed`` does it for many, into a file.

    Args:
        model: A run or bundle folder, what :func:`load` gave, or an :class:`finetune.embeddings.extractor.FeatureExtractor`.
        images: uint8 (B, C, H, W), or what ``finetune predict`` takes: files, folders, patterns, lists.
        stage: Pool the output of this stage; None takes the features below the head.
        normalize: Scale features to length one.
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
    """The k nearest embeddings of each query, exactly; ``rows`` and ``distances``, both (Q, k).

    Args:
        embeddings: Searched in.
        queries: Embeddings by the same model, or their features (Q, D).
        k: Neighbours of each.
        metric: ``cosine`` or ``l2``.

    Raises:
        UserError: The widths differ, or a setting is out of range.
    """
    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.search import nearest

    wanted = queries.features if isinstance(queries, Embeddings) else queries
    return nearest(embeddings.features, wanted, k, metric=metric)
