"""``torch.export``: the graph of the ONNX export as a ``.pt2`` file, for PyTorch without this package."""

from pathlib import Path

import torch

from finetune.data.decode import DecodeOptions
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
    decode: DecodeOptions | None = None,
) -> None:
    """Write a ``.pt2`` file with free batch, height and width; its extra file ``finetune.json`` holds the class names.

    Args:
        classifier: Trained model in evaluation mode, on the CPU; it is not changed.
        path: File to write.
        layout: Pixel layout of the input.
        program: Result of :func:`finetune.export.onnx.traced` for the same arguments; None traces the model here.
        decode: How the run decodes files, stored for code that predicts with the export.
    """
    if program is None:
        with quiet_exporter():
            program = traced(classifier, layout=layout)
    # an open file, because torch insists on the suffix .pt2 for a path, and the temporary name lacks it
    described = as_text(provenance(classifier, layout=layout, decode=decode))
    with path.open("wb") as file, quiet_exporter():
        torch.export.save(program, file, extra_files={EXTRA_FILE: described})
