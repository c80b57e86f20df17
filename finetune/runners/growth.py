"""Measure a model that grew from an earlier one on the earlier one's classes: accuracy before and after, and on new classes."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.config.schema import Config
from finetune.errors import UserError
from finetune.results import Growth

if TYPE_CHECKING:
    from finetune.data.image_source import Source
    from finetune.data.sampling import Rows
    from finetune.models.classifier import Classifier
    from finetune.training.eval_outputs import SplitEvaluation

log = logging.getLogger(__name__)


def measure_growth(
    config: Config,
    classifier: "Classifier",
    evaluated: "Mapping[str, SplitEvaluation]",
    *,
    source: "Source",
    start: Path,
) -> Growth | None:
    """Return what a grown model is worth on old and new classes; None for a run that did not grow from another.

    The earlier model is the one that training started from, its head cut to the old classes. Both are tested on the test images
    of the old classes; where the data has none, on those of the earlier run, if its data is still there.

    Args:
        config: Configuration of the run.
        classifier: Network with its final weights.
        evaluated: Outputs of ``test``.
        source: Images of the run.
        start: File of the weights before the first phase.
    """
    if config.data.old_classes is None:
        return None
    from finetune.training.phase_weights import load_weights

    old, index = len(config.data.old_classes), source.index
    outputs = evaluated["test"].outputs
    right_N, is_new_N = outputs["logits"].argmax(1) == outputs["targets"], outputs["targets"] >= old
    new_images = int(is_new_N.sum())
    tested, rows = source, index.rows("test")
    rows = rows[index.targets[rows] < old]
    why_not = ""
    if not len(rows):
        try:
            tested = _source_of_the_earlier_run(config)
            rows = tested.index.rows("test")
            why_not = "" if len(rows) else "the earlier run has no test images"
        except UserError as error:
            log.warning("The old classes cannot be tested on the images of the earlier run: %s", error)
            why_not = "neither this data nor that of the earlier run has test images of them"
    before = after = among_old = None
    if not why_not:
        earlier = copy.deepcopy(classifier)
        earlier.unfit()
        load_weights(earlier, start)
        before = _accuracy(earlier, tested, rows, classes=old)
        among_old = _accuracy(classifier, tested, rows, classes=old)
        after = float(right_N[~is_new_N].double().mean()) if tested is source else _accuracy(classifier, tested, rows)
    counts = index.counts()["train"]
    return Growth(
        old_classes=tuple(index.classes[:old]),
        new_classes=tuple(index.classes[old:]),
        rehearsed=any(counts[:old]),
        old_images=0 if why_not else len(rows),
        new_images=new_images,
        before=before,
        after=after,
        among_old=among_old,
        new=float(right_N[is_new_N].double().mean()) if new_images else None,
        why_not=why_not,
    )


def _source_of_the_earlier_run(config: Config) -> "Source":
    """Return the images of the run that the head comes from, its classes renamed as in this run.

    Raises:
        UserError: They are no longer there, or have changed since.
    """
    from finetune.build.data import build_source
    from finetune.bundle import find_bundle, read_model_json
    from finetune.data.class_list import arrange_classes
    from finetune.inference.decode_options import decode_options_of
    from finetune.run_folder import RecordedData
    from finetune.runners.run_data import data_config, read_as_trained

    run = str(config.head.weights)
    earlier = data_config(run, [])
    values = read_model_json(find_bundle(run))
    earlier.input.channels = values["model"]["input_spec"]["channels"]
    read_as_trained(earlier, [], decode_options_of(run))
    source = build_source(earlier)
    if RecordedData.of(source.index).fingerprint != values["data"].get("fingerprint"):
        raise UserError("the data has changed since that run")
    arrange_classes(source.index, first=config.data.old_classes or (), rename=config.data.rename)
    return source


def _accuracy(classifier: "Classifier", source: "Source", rows: "Rows", *, classes: int | None = None) -> float:
    """Return the share of images whose most probable class is the true one, among the first classes or among all."""
    import torch

    from finetune.data.datamodule import ImageDataModule
    from finetune.models.batch_norm_folding import fast_features
    from finetune.models.chunks import run_in_chunks
    from finetune.models.modes import evaluating

    device, right = next(classifier.parameters()).device, 0
    data = ImageDataModule(source=source, spec=classifier.input_spec)
    with evaluating(classifier), torch.inference_mode():
        embed = fast_features(classifier)
        for batch in data.rows_dataloader(rows):
            logits_BK = classifier.logits(run_in_chunks(embed, batch.images.to(device)))[:, :classes]
            right += int((logits_BK.argmax(1).cpu() == batch.targets).sum())
    return right / len(rows)
