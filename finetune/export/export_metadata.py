"""Metadata stored in or beside every export, so that anyone can use the model and trace its origin."""

import json

from finetune.data.decode import DecodeOptions
from finetune.export.graph import Layout
from finetune.models.classifier import Classifier
from finetune.models.weights import state_hash
from finetune.plain import Json
from finetune.versions import versions

FORMAT = 1
# name of our entry in ONNX metadata, in the extra files of a .pt2 file, and in config files
KEY = "finetune"


def provenance(
    classifier: Classifier,
    *,
    layout: Layout | None = None,
    precision: str = "fp32",
    decode_options: DecodeOptions | None = None,
) -> dict[str, Json]:
    """Return the metadata of an export as plain JSON values.

    Args:
        classifier: Trained model.
        layout: Layout of the raw pixels that the export takes; None if it takes prepared images.
        precision: ``fp32``, ``fp16`` or ``int8``.
        decode_options: How the run decodes image files; None if not known.
    """
    spec = classifier.input_spec
    described: dict[str, Json] = {
        "format": FORMAT,
        "classes": list(classifier.classes),
        "multi_label": classifier.multi_label,
        "backbone": {"source": classifier.backbone.source, "name": classifier.backbone.name},
        "input": spec.to_dict(),
        "adapt": classifier.adapt,
        "precision": precision,
        "weights_hash": state_hash(classifier),
        # by which the logits of training have been divided
        "temperature": classifier.temperature,
        "versions": versions(),
    }
    if classifier.multi_label:
        # probability above which each class is predicted
        described["thresholds"] = list(classifier.thresholds)
    if classifier.selective is not None:
        described["selective"] = classifier.selective.to_plain()
    if classifier.conformal is not None:
        described["conformal"] = classifier.conformal.to_plain()
    if decode_options is not None:
        described["reading"] = decode_options.to_plain()
    if layout is not None:
        channels = str(spec.channels)
        described["pixels"] = {
            "layout": layout,
            "dtype": "uint8",
            "shape": ["batch", "height", "width", channels]
            if layout == "nhwc"
            else ["batch", channels, "height", "width"],
            "contains": "resize, crop, normalisation, channels, network, temperature, "
            + ("sigmoid" if classifier.multi_label else "softmax")
            + ("" if classifier.unknown is None else ", score of unknown images"),
        }
    return described


def as_text(described: Json) -> str:
    """Return the metadata as one line of JSON."""
    return json.dumps(described, ensure_ascii=False, sort_keys=True, allow_nan=False)
