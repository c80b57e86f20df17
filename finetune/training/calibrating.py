"""Fit temperature and decision thresholds of a trained network on its validation images, and evaluate it with them."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torchmetrics import Metric

from finetune.confidence.temperature import fit_temperature
from finetune.confidence.thresholds import fit_thresholds
from finetune.metrics import metrics_of_outputs
from finetune.models.classifier import Classifier
from finetune.results import Calibration, DecisionThresholds
from finetune.training.eval_outputs import SplitEvaluation


def calibrate(
    classifier: Classifier,
    evaluated: Mapping[str, SplitEvaluation],
    *,
    user_metrics: Mapping[str, Metric] | None = None,
) -> tuple[Calibration, dict[str, SplitEvaluation]]:
    """Fit the temperature of a network, and return the metrics that it has with it.

    Args:
        classifier: Network with its final weights; its temperature is set.
        evaluated: Metrics and outputs of ``val`` and ``test``.
        user_metrics: User-supplied metrics by name.

    Returns:
        What was fitted, and metrics and outputs of the calibrated network.
    """
    val = evaluated["val"].outputs
    logits_NK = val["logits"].double()
    probabilities_NK = logits_NK.sigmoid() if classifier.multi_label else logits_NK.softmax(1)
    fit = fit_temperature(probabilities_NK.numpy(), val["targets"].numpy())
    calibration = Calibration(
        temperature=fit.temperature,
        interval=fit.interval,
        images=len(val["rows"]),
        why_not=fit.why_not,
        before={
            f"{split}/{name}": value
            for split, evaluation in evaluated.items()
            for name, value in (("ece", evaluation.metrics.ece), ("loss", evaluation.metrics.loss))
        },
    )
    classifier.temperature = fit.temperature
    if fit.temperature == 1:
        return calibration, dict(evaluated)
    calibrated = {}
    for split, evaluation in evaluated.items():
        outputs = {**evaluation.outputs, "logits": evaluation.outputs["logits"] / fit.temperature}
        metrics = metrics_of_outputs(outputs["logits"], outputs["targets"], own=user_metrics)
        calibrated[split] = replace(evaluation, metrics=metrics, outputs=outputs)
    return calibration, calibrated


def apply_thresholds(
    classifier: Classifier,
    evaluated: Mapping[str, SplitEvaluation],
    *,
    user_metrics: Mapping[str, Metric] | None = None,
) -> tuple[DecisionThresholds, dict[str, SplitEvaluation]]:
    """Fit the decision thresholds of a calibrated network for several labels, and return the metrics that it has with them.

    Args:
        classifier: Network with its final weights and temperature; its thresholds are set.
        evaluated: Metrics and outputs of ``val`` and ``test``.
        user_metrics: User-supplied metrics by name.

    Returns:
        What was fitted, and metrics and outputs of the network with it.
    """
    val = evaluated["val"].outputs
    fitted = fit_thresholds(classifier.probabilities(val["logits"]).numpy(), val["targets"].numpy())
    thresholds = DecisionThresholds(
        values=fitted.thresholds,
        images=len(val["rows"]),
        left=tuple(classifier.classes[number] for number in fitted.left),
        before={
            f"{split}/{name}": evaluation.metrics.scalars()[name]
            for split, evaluation in evaluated.items()
            for name in ("acc", "f1_macro", "f1_micro")
        },
    )
    classifier.thresholds = fitted.thresholds
    decided = {}
    for split, evaluation in evaluated.items():
        outputs = evaluation.outputs
        metrics = metrics_of_outputs(
            outputs["logits"], outputs["targets"], own=user_metrics, thresholds=fitted.thresholds
        )
        decided[split] = replace(evaluation, metrics=metrics)
    return thresholds, decided


def with_probabilities(classifier: Classifier, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return outputs with probabilities in place of logits."""
    others = {name: tensor for name, tensor in outputs.items() if name != "logits"}
    return {**others, "probabilities": classifier.probabilities(outputs["logits"])}
