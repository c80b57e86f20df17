"""``--format timm``: a folder in the layout of timm."""

from pathlib import Path
from typing import Any

import numpy as np

from finetune.export.client import Array, ClientJob, LibraryClient, pillow
from finetune.export.formats.kind import ExportFormat, ExportJob


class TimmClient(LibraryClient):
    """``timm.create_model("local-dir:FOLDER", pretrained=True)`` with its own data config and transform."""

    def __init__(self, target: str, options: ClientJob) -> None:
        import timm
        import torch

        data: Any = timm.data
        self.torch = torch
        self.model: Any = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
        self.config = data.resolve_model_data_config(self.model)
        self.transform = data.create_transform(**self.config, is_training=False)
        cfg: Any = self.model.pretrained_cfg
        self.classes = list(cfg["label_names"])
        self.grey = bool(options["grey"])
        self.opened_by = f"timm {timm.__version__}"

    def prepared(self, images_NCHW: Array) -> Array:
        images = self.normalise(images_NCHW, self.config["mean"], self.config["std"])
        with self.torch.no_grad():
            return np.asarray(self.model(self.torch.from_numpy(images)).softmax(1).numpy())

    def file(self, path: str) -> Array:
        image = self.transform(pillow(path, grey=self.grey, reading=self.reading).convert("RGB"))
        with self.torch.no_grad():
            return np.asarray(self.model(image[None]).softmax(1)[0].numpy())


_SNIPPET = """\
import timm
{image}
model = timm.create_model("local-dir:{path}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
probabilities = model(transform(image{rgb})[None]).softmax(1)[0]
print(model.pretrained_cfg["label_names"][int(probabilities.argmax())], float(probabilities.max()))
"""


def _write(job: ExportJob, path: Path) -> None:
    from finetune.export.library_formats import export_timm

    export_timm(job.classifier, path)


TIMM = ExportFormat(
    name="timm",
    about='a folder: timm.create_model("local-dir:FOLDER", pretrained=True)',
    filename="timm",
    write=_write,
    client=TimmClient,
    snippet=_SNIPPET,
    is_folder=True,
    has_readme=True,
)
