"""Fit what tells how far a trained network's answers can be trusted: unknown images, accepted answers, prediction sets."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from finetune.confidence.conformal import conformal_curve
from finetune.confidence.selective import risk_coverage
from finetune.confidence.unknown import UnknownScore, fit_unknown, sample_by_class
from finetune.data.index import Index
from finetune.data.sampling import Rows
from finetune.models.classifier import Classifier
from finetune.results import UnknownImages
from finetune.training.eval_outputs import SplitEvaluation


def rows_to_fit(index: Index) -> Rows:
    """Return the rows of the training images on which the score of unknown images is fitted."""
    rows = index.rows("train")
    return rows[sample_by_class(index.targets[rows], len(index.classes))]


def fit_unknown_images(
    classifier: Classifier, evaluated: Mapping[str, SplitEvaluation], *, accept: float
) -> UnknownImages:
    """Fit the score of unknown images of a network, which is set, and return what was fitted.

    Args:
        classifier: Network with its final weights.
        evaluated: Outputs of ``val`` and ``test``, and of a sample of ``train``, each with the embeddings of a sample. A network
            for several labels needs none of them.
        accept: Share of the validation images that count as known.
    """
    if classifier.multi_label:
        return UnknownImages(accept=accept, known={}, why_not="an image may show several classes, or none of them")
    train, val, test = (evaluated[split].outputs for split in ("train", "val", "test"))
    fit = fit_unknown(_features(train), train["targets"].numpy(), _features(val), accept=accept)
    classifier.unknown = fit.score
    known = {}
    if fit.score is not None:
        known = {
            split: _share_known(fit.score, outputs["embeddings"]) for split, outputs in (("val", val), ("test", test))
        }
    return UnknownImages(
        accept=accept,
        threshold=fit.threshold,
        images=len(train["rows"]),
        val_images=len(val["embeddings"]),
        known=known,
        why_not=fit.why_not,
    )


def _features(outputs: Mapping[str, torch.Tensor]) -> npt.NDArray[np.float64]:
    return outputs["embeddings"].double().numpy()


def _share_known(score: UnknownScore, features_ND: torch.Tensor) -> float:
    return float((score(features_ND) <= 1).double().mean())


def fit_curves(classifier: Classifier, evaluated: Mapping[str, SplitEvaluation]) -> None:
    """Set the risk-coverage curve and the conformal curve of a calibrated network; one for several labels has none.

    Validation images that count as unknown are accepted at no confidence. Where only a sample has embeddings, the first curve is
    of it.
    """
    if classifier.multi_label:
        return
    val = evaluated["val"].outputs
    probabilities_NK = classifier.probabilities(val["logits"])
    classifier.conformal = conformal_curve(probabilities_NK.numpy(), val["targets"].numpy())
    confidence_N, answers_N = probabilities_NK.max(1)
    right_N = answers_N == val["targets"]
    if classifier.unknown is not None:
        kept_N = torch.isin(val["rows"], val["embedded_rows"])
        confidence_N, right_N = confidence_N[kept_N], right_N[kept_N]
        confidence_N = torch.where(classifier.unknown(val["embeddings"]) <= 1, confidence_N, -1.0)
    classifier.selective = risk_coverage(confidence_N.numpy(), right_N.numpy())
