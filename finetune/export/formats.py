"""The table of export formats: what each is, what it needs, how it is written, and which client opens it.

A new format is one entry of :data:`FORMATS` and, in :mod:`finetune.export.client`, the client that opens it without this package.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.atomic_files import write_text
from finetune.errors import UserError

if TYPE_CHECKING:
    from finetune.export.graph import Layout
    from finetune.export.images import CheckImages
    from finetune.models.classifier import Classifier

_ONNX = ("onnx", "onnxscript", "onnxruntime")
# the model at full precision that an int8 model is made of, beside it
FULL = "full.onnx"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export.

    Args:
        form: Name of the format, a key of :data:`FORMATS`.
        precision: ``fp32``; for ONNX also ``fp16`` and ``int8``.
        layout: Pixel layout that ONNX and torch_export take as input.
    """

    form: str
    precision: str = "fp32"
    layout: "Layout" = "nhwc"

    @property
    def format(self) -> "ExportFormat":
        """The entry of the table."""
        return FORMATS[self.form]

    @property
    def filename(self) -> str:
        """The export's usual file or folder name."""
        stem, dot, suffix = self.format.filename.partition(".")
        return self.format.filename if self.precision == "fp32" else f"{stem}-{self.precision}{dot}{suffix}"

    def check(self) -> None:
        """Check that the format has the precision and that the libraries it needs are installed.

        Raises:
            UserError: The format has no such precision, or a library is missing.
        """
        if self.precision not in self.format.precisions:
            raise UserError(
                f"--precision {self.precision}: exists for --format onnx only. Given: --format {self.form}."
            )
        missing = [name for name in self.format.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"--format {self.form}: needs {', '.join(self.format.needs)}. Not installed: {', '.join(missing)}. "
                f"Install with: pip install 'stagewise-finetune[{self.format.extra}]'"
            )


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What a writer is given.

    Args:
        classifier: Trained model in evaluation mode.
        request: Format, precision and layout.
        images: Images to check the export on; int8 is calibrated on them.
        card: Model card in Markdown, for formats that show it.
    """

    classifier: "Classifier"
    request: ExportRequest
    images: "CheckImages"
    card: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """One way to write a trained model or a part of it.

    Args:
        about: One line of help: what it is, and how it is opened.
        filename: Usual name of the file or folder.
        write: Writes it to a new file, or into an existing empty folder.
        is_folder: Whether it is a folder.
        is_part: Whether it is a part of the model, which is compared with the same part alone.
        precisions: Precisions that it can be written in.
        needs: Modules that must be installed.
        extra: Extra of this package that installs them.
        opened_as: Client that opens it; empty for the one of the format's own name.
        opened_file: File inside the folder that the client opens; empty for the whole.
    """

    about: str
    filename: str
    write: Callable[[ExportJob, Path], None]
    is_folder: bool = False
    is_part: bool = False
    precisions: tuple[str, ...] = ("fp32",)
    needs: tuple[str, ...] = ()
    extra: str = ""
    opened_as: str = ""
    opened_file: str = ""


def _write_onnx(job: ExportJob, path: Path) -> None:
    from finetune.export.onnx import export_onnx

    request, reading = job.request, job.images.reading
    full = path.with_name(FULL) if request.precision == "int8" else path
    export_onnx(job.classifier, full, layout=request.layout, half=request.precision == "fp16", reading=reading)
    if request.precision == "int8":
        from finetune.export.quantize import quantise_onnx

        channels = job.classifier.input_spec.channels
        quantise_onnx(
            full, path, files=job.images.calibration, channels=channels, layout=request.layout, reading=reading
        )


def _write_torch_export(job: ExportJob, path: Path) -> None:
    from finetune.export.torch_export import export_torch

    export_torch(job.classifier, path, layout=job.request.layout, reading=job.images.reading)


def _write_timm(job: ExportJob, path: Path) -> None:
    from finetune.export.library_formats import export_timm

    export_timm(job.classifier, path)
    _write_readme(job, path)


def _write_torchvision(job: ExportJob, path: Path) -> None:
    from finetune.export.library_formats import export_torchvision

    export_torchvision(job.classifier, path)
    _write_readme(job, path)


def _write_transformers(job: ExportJob, path: Path) -> None:
    from finetune.export.library_formats import export_transformers

    export_transformers(job.classifier, path)
    _write_readme(job, path)


def _write_readme(job: ExportJob, folder: Path) -> None:
    from finetune.report.loading_snippets import how_to_load

    write_text(folder / "README.md", how_to_load(job.request.form, job.classifier.input_spec, path="."))


def _write_web(job: ExportJob, path: Path) -> None:
    from finetune.export.web_page import export_web

    export_web(job.classifier, path, job.images, card=job.card)


def _write_head(job: ExportJob, path: Path) -> None:
    from finetune.export.parts import export_head

    export_head(job.classifier, path)


def _write_backbone(job: ExportJob, path: Path) -> None:
    from finetune.export.parts import export_backbone

    export_backbone(job.classifier, path)


FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(
        about="uint8 pixels of any size to probabilities, class names in the metadata: ONNX Runtime",
        filename="model.onnx",
        write=_write_onnx,
        precisions=("fp32", "fp16", "int8"),
        needs=_ONNX,
        extra="onnx",
    ),
    "torch_export": ExportFormat(
        about="the same as a .pt2 file: torch.export.load", filename="model.pt2", write=_write_torch_export
    ),
    "timm": ExportFormat(
        about='a folder: timm.create_model("local-dir:FOLDER", pretrained=True)',
        filename="timm",
        write=_write_timm,
        is_folder=True,
    ),
    "torchvision": ExportFormat(
        about="a folder: torchvision.models.NAME().load_state_dict",
        filename="torchvision",
        write=_write_torchvision,
        is_folder=True,
    ),
    "transformers": ExportFormat(
        about='a folder: pipeline("image-classification", model=FOLDER)',
        filename="transformers",
        write=_write_transformers,
        is_folder=True,
        needs=("transformers",),
        extra="transformers",
    ),
    "web": ExportFormat(
        about="a folder with one page that runs the model in a browser; serve it with: python -m http.server",
        filename="web",
        write=_write_web,
        is_folder=True,
        needs=_ONNX,
        extra="onnx",
        # ONNX Runtime opens the model of the page here, not a browser
        opened_as="onnx",
        opened_file="model.onnx",
    ),
    "head": ExportFormat(
        about="safetensors with its settings and classes, tied to the backbone it was trained on: head.weights=FILE",
        filename="head.safetensors",
        write=_write_head,
        is_part=True,
    ),
    "backbone": ExportFormat(
        about="safetensors in the layout of the library that the network comes from: backbone.weights=FILE",
        filename="backbone.safetensors",
        write=_write_backbone,
        is_part=True,
    ),
}
