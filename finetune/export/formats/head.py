"""``--format head``: the trained head alone."""

from pathlib import Path

import numpy as np

from finetune.export.client import Array, ClientJob, PartClient, described, function_of
from finetune.export.formats.kind import ExportFormat, ExportJob


class HeadClient(PartClient):
    """``safetensors.torch.load_file(FILE)`` and a matrix product: features to logits."""

    def __init__(self, target: str, options: ClientJob) -> None:
        import torch
        from safetensors.torch import load_file

        self.torch, self.weights = torch, load_file(target)
        entry = described(target)
        self.classes = entry["classes"]
        self.logits_alone = function_of(options)
        self.opened_by = f"safetensors, torch {torch.__version__}"

    def run(self, features_ND: Array) -> Array:
        logits = self.logits_alone(self.torch.from_numpy(features_ND), self.weights, self.torch.nn.functional)
        return np.asarray(logits)


def _write(job: ExportJob, path: Path) -> None:
    from finetune.export.parts import export_head

    export_head(job.classifier, path)


HEAD_ALONE = ExportFormat(
    name="head",
    about="safetensors with its settings and classes, tied to the backbone it was trained on: head.weights=FILE",
    filename="head.safetensors",
    write=_write,
    client=HeadClient,
    part="head",
    hint="train from it on the same backbone: finetune DIR head.weights={target}",
)
