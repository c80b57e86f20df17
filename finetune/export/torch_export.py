"""``torch.export``: the same graph as ONNX's as a ``.pt2`` file, for PyTorch without this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune.export.export_metadata import KEY, as_text, provenance
from finetune.export.graph import Layout
from finetune.export.onnx import quiet_exporter, traced
from finetune.models.classifier import Classifier

EXTRA_FILE = f"{KEY}.json"


def export_torch(
    classifier: Classifier,
    path: Path,
    *,
    layout: Layout = "nhwc",
    program: torch.export.ExportedProgram | None = None,
    reading: Mapping[str, Any] | None = None,
) -> None:
    """Write a ``.pt2`` file; batch, height and width are free, class names lie in its extra file ``finetune.json``.

    Args:
        classifier: In evaluation mode, on the CPU; it is left as it is.
        path: The file.
        layout: Of the input.
        program: What :func:`finetune.export.onnx.traced` gives for these, where it is there already.
        reading: How the run reads files, for whoever predicts with the export.
    """
    if program is None:
        with quiet_exporter():
            program = traced(classifier, layout=layout)
    # an open file: given a path, torch insists on the suffix .pt2, and what is written first is a part beside the target
    described = as_text(provenance(classifier, layout=layout, reading=reading))
    with path.open("wb") as file, quiet_exporter():
        torch.export.save(program, file, extra_files={EXTRA_FILE: described})
