"""``--format torch_export``: raw pixels to probabilities, as a program of PyTorch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.export.client import Array, ClientJob, GraphClient
from finetune.export.formats.kind import ExportFormat, ExportJob

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from finetune.data.decode import DecodeOptions
    from finetune.export.graph import Layout
    from finetune.models.classifier import Classifier


class TorchExportClient(GraphClient):
    """``torch.export.load(FILE).module()(pixels)``."""

    def __init__(self, target: str, options: ClientJob) -> None:
        import torch

        extra = {"finetune.json": ""}
        self.torch = torch
        self.model = torch.export.load(target, extra_files=extra).module()
        described = json.loads(extra["finetune.json"])
        self.classes, self.layout = described["classes"], described["pixels"]["layout"]
        self.grey = described["input"]["channels"] == 1
        self.opened_by = f"torch {torch.__version__}"

    def run(self, pixels: Array) -> Sequence[Array]:
        with self.torch.no_grad():
            outputs = self.model(self.torch.from_numpy(pixels))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


_SNIPPET = """\
import json
import numpy as np, torch
{image}
extra = {{"finetune.json": ""}}
model = torch.export.load("{path}", extra_files=extra).module()
classes = json.loads(extra["finetune.json"])["classes"]
pixels = np.atleast_3d(np.array(image))[None]  # uint8, any size
probabilities = model(torch.from_numpy(pixels))[0]
print(classes[int(probabilities.argmax())], float(probabilities.max()))
"""
_SNIPPET_MULTI_LABEL = """\
import json
import numpy as np, torch
{image}
extra = {{"finetune.json": ""}}
model = torch.export.load("{path}", extra_files=extra).module()
described = json.loads(extra["finetune.json"])
pixels = np.atleast_3d(np.array(image))[None]  # uint8, any size
probabilities = model(torch.from_numpy(pixels))[0].tolist()
print([name for name, p, t in zip(described["classes"], probabilities, described["thresholds"]) if p > t])
"""


def export_torch(
    classifier: "Classifier",
    path: Path,
    *,
    layout: "Layout" = "nhwc",
    program: "ExportedProgram | None" = None,
    decode_options: "DecodeOptions | None" = None,
) -> None:
    """Write a ``.pt2`` file with free batch, height and width; its extra file ``finetune.json`` holds the class names.

    Args:
        classifier: Trained model in evaluation mode, on the CPU; it is not changed.
        path: File to write.
        layout: Pixel layout of the input.
        program: Result of :func:`finetune.export.onnx.trace` for the same arguments; None traces the model here.
        decode_options: How the run decodes files, stored for code that predicts with the export.
    """
    import torch

    from finetune.export.export_metadata import KEY, as_text, provenance
    from finetune.export.onnx import quiet_exporter, trace

    if program is None:
        with quiet_exporter():
            program = trace(classifier, layout=layout)
    # an open file, because torch insists on the suffix .pt2 for a path, and the temporary name lacks it
    described = as_text(provenance(classifier, layout=layout, decode_options=decode_options))
    with path.open("wb") as file, quiet_exporter():
        torch.export.save(program, file, extra_files={f"{KEY}.json": described})


def _write(job: ExportJob, path: Path) -> None:
    export_torch(job.classifier, path, layout=job.request.layout, decode_options=job.images.decode_options)


TORCH_EXPORT = ExportFormat(
    name="torch_export",
    about="the same as a .pt2 file: torch.export.load",
    filename="model.pt2",
    write=_write,
    client=TorchExportClient,
    snippet=_SNIPPET,
    snippet_multi_label=_SNIPPET_MULTI_LABEL,
    # the only format that can execute code: torch.export.load unpickles parts of the file
    caution=(
        "Opening a `.pt2` file executes what its maker put there: `torch.export.load` unpickles parts of it. Open "
        "only those whose maker you trust; the bundle and the ONNX file hold the same model as data."
    ),
)
