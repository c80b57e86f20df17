"""Trained models in Python: load and save them, compute features, search."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.api.model_argument import model_argument
from finetune.arguments import public
from finetune.errors import RunError, UserError, type_in_words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from finetune.api.model_argument import Run
    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.extractor import FeatureExtractor
    from finetune.embeddings.image_records import DatasetRecords
    from finetune.embeddings.search import Neighbours
    from finetune.inference.trained_model import TrainedModel
    from finetune.models.classifier import Classifier

log = logging.getLogger(__name__)


@public
def load(path: "Run", *, modules: "Mapping[str, nn.Module] | None" = None, trust: bool = False) -> "TrainedModel":
    """Load a trained model from a bundle folder or a run folder.

    Args:
        path: A bundle folder, a run folder that has one, or what :func:`finetune.fit` returned.
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
    from finetune.data.decode import DecodeOptions
    from finetune.inference.trained_model import TrainedModel, trained_model

    model = model_argument(path, "path", modules=modules, trust=trust).load()
    if isinstance(model, TrainedModel):
        return model
    return trained_model(model, decode_options=DecodeOptions(channels=model.input_spec.channels))


@public
def predict(
    model: "Run | Classifier",
    images: Any,
    *,
    uncertain_below: float = 0.2,
    batch_size: int = 32,
    unknown: bool = False,
    accept: float | None = None,
    least: float | None = None,
    sets: float | None = None,
    modules: "Mapping[str, nn.Module] | None" = None,
    trust: bool = False,
) -> Any:
    """Classify images in any form, each resized and cropped as ``finetune predict`` does.

        finetune.predict("runs/pets", "photos")                         # a folder; also files, patterns, lists of them
        finetune.predict(model, [Image.open("a.jpg"), array])           # Pillow images, arrays (H, W, C), tensors (C, H, W)
        finetune.predict(run, table)                                    # a data frame with a column path

    Args:
        model: A run or bundle folder, what :func:`finetune.fit` returned, or a model in memory, on any device.
        images: The images.
        uncertain_below: An answer is marked uncertain if its margin is smaller. The margin is the gap between the two most
            probable classes; for a model of several labels, twice the distance of the nearest probability from its threshold.
        batch_size: Images in one forward pass.
        unknown: Predict ``unknown`` for images that are unlike the training images, with their class as ``nearest``.
        accept: Accuracy wanted of the accepted answers, for a column ``accepted``; it holds in 19 of 20 draws of the validation
            images that promise it.
        least: Least probability of the accepted answers, in its place.
        sets: Share of the images whose true class must be in their set, for a column ``set`` of classes joined by ``;``, the most
            probable first; it holds on average over draws of the validation images.
        modules: Modules of your own that the run needs, as for :func:`load`.
        trust: Build the classes of your own that the run names.

    Returns:
        A pandas DataFrame where pandas is installed, else a :class:`finetune.Table`. A row for each image: ``image`` (its
        path or position), ``predicted`` (with several labels joined by ``;``), ``probability``, ``margin``, ``uncertain``, for a
        model that tells unknown images ``unknown_score``, above 1 for them, and ``known``; the probability of every class under
        its name, and ``error``, the reason why a file cannot be read.

    Raises:
        UserError: There is no such model, the images are in no known form, there are none, or the model cannot tell or promise
            what is asked.
    """
    from finetune.inference.trained_model import predict as classify

    loaded = model_argument(model, "model", modules=modules, trust=trust).load()
    return classify(
        loaded,
        images,
        uncertain_below=uncertain_below,
        batch_size=batch_size,
        unknown=unknown,
        accept=accept,
        least=least,
        sets=sets,
    )


@public
def pick(
    run: "Run",
    images: Any,
    count: int,
    *,
    batch_size: int = 32,
    seed: int = 0,
    modules: "Mapping[str, nn.Module] | None" = None,
    trust: bool = False,
) -> Any:
    """Choose which images without labels to label next: typical ones of groups in which no image of the run's data lies.

        table = finetune.pick("runs/pets", "unlabelled", 100)
        table.to_csv("to_label.csv", index=False)    # fill in label; then finetune.fit("to_label.csv")

    Args:
        run: A run or bundle folder, what :func:`finetune.fit` returned, or a model from :func:`load`.
        images: Files, folders with all images below them, patterns or lists, or a list of them; images of the run's own data and
            further copies of an image are left out.
        count: Number of images to choose; all are returned where there are fewer.
        batch_size: Images in one forward pass.
        seed: Seed of the choice.
        modules: Modules of your own that the run needs, as for :func:`load`.
        trust: Build the classes of your own that the run names.

    Returns:
        A pandas DataFrame where pandas is installed, else a :class:`finetune.Table`, the most useful image first: ``path``, an
        empty ``label``, and what is ``predicted`` now with its ``probability``. The method is TypiClust (Hacohen et al. 2022,
        arXiv 2202.02794).

    Raises:
        UserError: There is no such run, the model in memory is no longer the one in its folder, a path does not exist, or a
            number is below its range.
        RunError: No image is left to choose from.
    """
    from finetune.inference.image_paths import find_images
    from finetune.inference.pick import COLUMNS, left_out_in_words, nothing_left_in_words
    from finetune.inference.torch_engine import TorchEngine
    from finetune.runners.pick import pick_for_run
    from finetune.table import frame

    for name, value, least in (("count", count, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name}={value}: must be at least {least}.")
    given = [images] if isinstance(images, (str, Path)) else images
    if not isinstance(given, Sequence) or not all(isinstance(path, (str, Path)) for path in given):
        raise UserError(f"images: must be a path or a list of paths. It is {type_in_words(images)}.")
    argument = model_argument(run, modules=modules, trust=trust)
    folder = argument.require_folder("run")
    engine = TorchEngine(folder, classifier=argument.load_saved())
    picked = pick_for_run(folder, engine, find_images(given), count, batch_size=batch_size, seed=seed)
    if not picked.images:
        raise RunError(f"images: {nothing_left_in_words(picked)}")
    if left_out_in_words(picked):
        log.info(left_out_in_words(picked))
    rows = [(image.path, "", image.predicted, image.probability) for image in picked.images]
    return frame(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))


@public
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
    from finetune.models.classifier import Classifier

    if not isinstance(model, Classifier):
        raise UserError(
            f"model: must be what finetune.build_classifier returns. It is {type_in_words(model)}. Save the classifier "
            "inside it."
        )
    return save(model, folder)


@public
def embed(
    model: "Run | Classifier | FeatureExtractor",
    images: Any = None,
    *,
    data: Any = None,
    stage: str | None = None,
    normalize: bool = False,
    batch_size: int = 32,
    modules: "Mapping[str, nn.Module] | None" = None,
    trust: bool = False,
    overrides: Sequence[str] = (),
) -> "Embeddings":
    """Compute features of images in memory; ``finetune embed`` writes those of many images to a file.

        finetune.embed(run, "photos")        # images, without labels
        finetune.embed(run, data="pets")     # a data set, with its labels and splits
        finetune.embed(run)                  # the run's own data set

    Args:
        model: A run or bundle folder, what :func:`finetune.fit` returned, a model in memory, or a
            :class:`finetune.embeddings.extractor.FeatureExtractor`.
        images: uint8 (B, C, H, W), or what :func:`predict` takes: files, folders, Pillow images, arrays, data frames.
        data: A data set, as for :func:`finetune.fit`, in place of ``images``.
        stage: Stage whose output is pooled; None takes the features below the head.
        normalize: Whether to scale the features to length one.
        batch_size: Images in one forward pass.
        modules: Modules of your own that the run needs, as for :func:`load`.
        trust: Build the classes of your own that the run names.
        overrides: Other overrides of the data set, as on the command line.

    Raises:
        UserError: There is no such model, stage or image, or an image cannot be read.
    """
    from finetune.embeddings.extractor import FeatureExtractor, extractor_from_classifier
    from finetune.embeddings.in_memory import embed_in_memory
    from finetune.inference.trained_model import TrainedModel

    if images is not None and data is not None:
        raise UserError("images and data: only one of them can be embedded. Leave one out.")
    folder = None
    if isinstance(model, FeatureExtractor):
        if stage not in (None, model.stage):
            raise UserError(f"stage={stage!r}: this extractor was made for {model.stage!r}.")
        extractor = model
    else:
        argument = model_argument(model, "model", modules=modules, trust=trust)
        loaded, folder = argument.load(), argument.folder
        decode_options = loaded.decode_options if isinstance(loaded, TrainedModel) else None
        extractor = extractor_from_classifier(loaded, stage=stage, decode_options=decode_options, run=folder)
    if images is None:
        images = _data_set(data, folder, extractor, overrides)
    return embed_in_memory(extractor, images, normalize=normalize, batch_size=batch_size)


def _data_set(
    data: Any, folder: str | None, extractor: "FeatureExtractor", overrides: Sequence[str]
) -> "DatasetRecords":
    """Return the images of a data set, read as the model's own were; None is the data set of the run."""
    from dataclasses import asdict

    from finetune.api.settings import FitArguments
    from finetune.build.data import build_source
    from finetune.config import check_overrides, compose
    from finetune.embeddings.image_records import DatasetRecords
    from finetune.runners.run_data import data_config, read_as_trained

    channels = extractor.spec.channels
    if data is None and folder is None:
        raise UserError("images: must be given for a model that is not saved in a folder. Give images, or data=.")
    arguments = None if data is None else FitArguments(data=data, channels=channels, overrides=overrides)
    words = [] if arguments is None else arguments.words_of_data()
    if arguments is not None and words is None:
        return DatasetRecords(arguments.evaluation_source(read_as=extractor.decode_options, use="audit"))
    accepted = check_overrides([*(words or []), *overrides])
    config = compose(accepted) if folder is None else data_config(folder, accepted)
    config.input.channels = channels
    read_as_trained(config, accepted, extractor.decode_options)
    # features need no training split
    source = build_source(config, use="audit", download=data is not None)
    return DatasetRecords(source, data={"seed": config.seed, "data": asdict(config.data)})


@public
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
    import numpy as np

    from finetune.embeddings.embeddings import Embeddings
    from finetune.embeddings.search import nearest

    for name, value, others in (("embeddings", embeddings, ()), ("queries", queries, (np.ndarray,))):
        if not isinstance(value, (Embeddings, *others)):
            raise UserError(
                f"{name}: must be embeddings. It is {type_in_words(value)}. Compute them: finetune.embed(model, images)."
            )
    features = queries.features if isinstance(queries, Embeddings) else queries
    return nearest(embeddings.features, features, k, metric=metric)
