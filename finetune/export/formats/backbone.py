"""``--format backbone``: the trained backbone alone, in the layout of its own library."""

from pathlib import Path
from typing import Any

import numpy as np

from finetune.export.client import Array, ClientJob, PartClient, described, function_of
from finetune.export.formats.kind import ExportFormat, ExportJob


class BackboneClient(PartClient):
    """The library's own network with ``load_state_dict(safetensors.torch.load_file(FILE))``: images to features."""

    classes: tuple[str, ...] = ()

    def __init__(self, target: str, options: ClientJob) -> None:
        import torch
        from safetensors.torch import load_file

        entry = described(target)["backbone"]
        self.torch = torch
        self.opened_by = f"{entry['source']} {__import__(entry['source']).__version__}"
        pool = {"pool": entry["pool"]} if "pool" in entry else {}
        self.model: Any = function_of(options)(
            entry["name"], entry["kwargs"], options["in_chans"], entry["input_spec"]["size"], **pool
        )
        self.model.load_state_dict(load_file(target))
        self.model.eval()

    def run(self, images_NSHW: Array) -> Array:
        with self.torch.no_grad():
            output = self.model(self.torch.from_numpy(images_NSHW))
        return np.asarray(output if isinstance(output, self.torch.Tensor) else output.pooler_output.flatten(1))


def _write(job: ExportJob, path: Path) -> None:
    from finetune.export.parts import export_backbone

    export_backbone(job.classifier, path)


BACKBONE_ALONE = ExportFormat(
    name="backbone",
    about="safetensors in the layout of the library that the network comes from: backbone.weights=FILE",
    filename="backbone.safetensors",
    write=_write,
    client=BackboneClient,
    part="backbone",
)
