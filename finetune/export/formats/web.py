"""``--format web``: a folder with one page that runs the model in a browser."""

from pathlib import Path

from finetune.export.formats.kind import ExportFormat, ExportJob
from finetune.export.formats.onnx import LIBRARIES, OnnxClient


def _write(job: ExportJob, path: Path) -> None:
    from finetune.export.web_page import export_web

    export_web(job.classifier, path, job.images, card=job.card)


WEB = ExportFormat(
    name="web",
    about="a folder with one page that runs the model in a browser; serve it with: python -m http.server",
    filename="web",
    write=_write,
    # ONNX Runtime opens the model of the page here, not a browser
    client=OnnxClient,
    opened_file="model.onnx",
    is_folder=True,
    needs=LIBRARIES,
    extra="onnx",
    hint="open it with: python -m http.server --directory {target}",
)
