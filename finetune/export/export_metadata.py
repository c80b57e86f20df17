"""What travels inside or beside every export, so that a stranger can use it and trace where it came from."""

import json
from collections.abc import Mapping
from typing import Any

from finetune.export.graph import Layout
from finetune.models.classifier import Classifier
from finetune.models.weights import state_hash
from finetune.versions import versions

FORMAT = 1
# the entry of ONNX's metadata, of a .pt2 file's extra files and of config files that holds it
KEY = "finetune"


def provenance(
    classifier: Classifier,
    *,
    layout: Layout | None = None,
    precision: str = "fp32",
    reading: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain JSON values.

    Args:
        classifier: The trained network.
        layout: Of the raw pixels that the export takes; None where it takes prepared images.
        precision: ``fp32``, ``fp16`` or ``int8``.
        reading: ``max_pixels`` and ``high_depth`` by which the run reads files, where they are known.
    """
    spec = classifier.input_spec
    described: dict[str, Any] = {
        "format": FORMAT,
        "classes": list(classifier.classes),
        "backbone": {"source": classifier.backbone.source, "name": classifier.backbone.name},
        "input": spec.to_dict(),
        "adapt": classifier.adapt,
        "precision": precision,
        "weights_hash": state_hash(classifier),
        "versions": versions(),
    }
    if reading:
        described["reading"] = dict(reading)
    if layout is not None:
        channels = str(spec.channels)
        described["pixels"] = {
            "layout": layout,
            "dtype": "uint8",
            "shape": ["batch", "height", "width", channels]
            if layout == "nhwc"
            else ["batch", channels, "height", "width"],
            "contains": "resize, crop, normalisation, channels, network, softmax",
        }
    return described


def as_text(described: dict[str, Any]) -> str:
    """JSON on one line."""
    return json.dumps(described, ensure_ascii=False, sort_keys=True, allow_nan=False)
