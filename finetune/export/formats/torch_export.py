"""``--format torch_export``: raw pixels to probabilities, as a program of PyTorch."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from finetune.export.client import Array, GraphClient
from finetune.export.formats.kind import ExportFormat, ExportJob


class TorchExportClient(GraphClient):
    """``torch.export.load(FILE).module()(pixels)``."""

    def __init__(self, target: str, options: dict[str, Any]) -> None:
        import torch

        extra = {"finetune.json": ""}
        self.torch = torch
        self.model = torch.export.load(target, extra_files=extra).module()
        described = json.loads(extra["finetune.json"])
        self.classes, self.layout = described["classes"], described["pixels"]["layout"]
        self.grey = described["input"]["channels"] == 1
        self.opened_by = f"torch {torch.__version__}"

    def run(self, pixels: Array) -> Array:
        with self.torch.no_grad():
            return np.asarray(self.model(self.torch.from_numpy(pixels)).numpy())


_SNIPPET = """\
import json
import numpy as np, torch
{image}
extra = {{"finetune.json": ""}}
model = torch.export.load("{path}", extra_files=extra).module()
classes = json.loads(extra["finetune.json"])["classes"]
pixels = np.array(image).reshape(1, image.height, image.width, -1)  # uint8, any size
probabilities = model(torch.from_numpy(pixels))[0]
print(classes[int(probabilities.argmax())], float(probabilities.max()))
"""


def _write(job: ExportJob, path: Path) -> None:
    from finetune.export.torch_export import export_torch

    export_torch(job.classifier, path, layout=job.request.layout, decode=job.images.decode)


TORCH_EXPORT = ExportFormat(
    name="torch_export",
    about="the same as a .pt2 file: torch.export.load",
    filename="model.pt2",
    write=_write,
    client=TorchExportClient,
    snippet=_SNIPPET,
    # the only format that can execute code: torch.export.load unpickles parts of the file
    caution=(
        "Opening a `.pt2` file executes what its maker put there: `torch.export.load` unpickles parts of it. Open "
        "only those whose maker you trust; the bundle and the ONNX file hold the same model as data."
    ),
)
