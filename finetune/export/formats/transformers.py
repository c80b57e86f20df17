"""``--format transformers``: a folder in the layout of transformers."""

from pathlib import Path
from typing import Any

import numpy as np

from finetune.export.client import Array, ClientJob, LibraryClient, pillow
from finetune.export.formats.kind import ExportFormat, ExportJob


class TransformersClient(LibraryClient):
    """``transformers.pipeline("image-classification", model=FOLDER)(file)``; timm prepares the image."""

    def __init__(self, target: str, options: ClientJob) -> None:
        import torch
        import transformers

        self.torch = torch
        self.pipe: Any = transformers.pipeline("image-classification", model=target, device="cpu")
        names: Any = self.pipe.model.config.id2label
        self.classes = [names[number] for number in range(len(names))]
        self.grey = bool(options["grey"])
        self.opened_by = f"transformers {transformers.__version__}"

    def prepared(self, images_NCHW: Array) -> Array:
        config = self.pipe.image_processor.data_config
        images = self.normalise(images_NCHW, config["mean"], config["std"])
        with self.torch.no_grad():
            return np.asarray(self.pipe.model(self.torch.from_numpy(images)).logits.softmax(1).numpy())

    def file(self, path: str) -> Array:
        # a colour model takes the file name; for a grey model the pipeline converts the one channel back to colour
        deep = {"integer_range", "float_range"} & set(self.reading)
        given = pillow(path, grey=self.grey, reading=self.reading) if self.grey or deep else path
        scores = {row["label"]: row["score"] for row in self.pipe(given, top_k=len(self.classes))}
        return np.asarray([scores[name] for name in self.classes])


_SNIPPET = """\
import transformers  # needs timm beside it: its transform prepares the images
{image}
classify = transformers.pipeline("image-classification", model="{path}")
# without timm, up to a pixel beside: image_processor="{path}/without_timm"
print(classify(image))
"""


def _write(job: ExportJob, path: Path) -> None:
    from finetune.export.library_formats import export_transformers

    export_transformers(job.classifier, path)


TRANSFORMERS = ExportFormat(
    name="transformers",
    about='a folder: pipeline("image-classification", model=FOLDER)',
    filename="transformers",
    write=_write,
    client=TransformersClient,
    snippet=_SNIPPET,
    is_folder=True,
    has_readme=True,
    needs=("transformers",),
    extra="transformers",
)
