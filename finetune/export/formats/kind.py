"""What an export format is: what it writes and needs, how it is opened, and how that is explained to users."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune.export.client import Client

if TYPE_CHECKING:
    from finetune.export.graph import Layout
    from finetune.export.images import CheckImages
    from finetune.export.parity_report import Speed
    from finetune.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """One way to write a trained model or a part of it: a value of ``--format``.

    Args:
        name: Its name.
        about: One line of help: what it is, and how it is opened.
        filename: Usual name of the file or folder.
        write: Writes it to a new file, or into an existing empty folder.
        client: Class that opens it without this package. Its text alone runs in a fresh process, in the namespace of
            :mod:`finetune.export.client`: it imports other libraries in its methods.
        snippet: Code that shows users how to open it, with ``{image}``, ``{path}`` and ``{rgb}``; empty for none.
        snippet_multi_label: The same for a model for several labels.
        caution: Sentence that users must read before they open it.
        hint: Line that is printed after the export, with ``{target}``.
        is_folder: Whether it is a folder.
        part: Part of the model that it holds, ``head`` or ``backbone``, which is compared with the same part alone; None for
            the whole.
        has_readme: Whether its folder gets a README.md with the snippet.
        precisions: Precisions that it can be written in.
        needs: Modules that must be installed.
        extra: Extra of this package that installs them.
        opened_file: File inside the folder that the client opens; empty for the whole.
        measure: Measures its speed; None if that is not reported.
    """

    name: str
    about: str
    filename: str
    write: "Callable[[ExportJob, Path], None]"
    client: type[Client]
    snippet: str = ""
    snippet_multi_label: str = ""
    caution: str = ""
    hint: str = ""
    is_folder: bool = False
    part: Literal["head", "backbone"] | None = None
    has_readme: bool = False
    precisions: tuple[str, ...] = ("fp32",)
    needs: tuple[str, ...] = ()
    extra: str = ""
    opened_file: str = ""
    measure: "Callable[[ExportJob, Path], Speed] | None" = None


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export.

    Args:
        format: Format to write.
        precision: ``fp32``; for ONNX also ``fp16`` and ``int8``.
        layout: Pixel layout that ONNX and torch_export take as input.
    """

    format: ExportFormat
    precision: str = "fp32"
    layout: "Layout" = "nhwc"

    @property
    def filename(self) -> str:
        """The export's usual file or folder name."""
        stem, dot, suffix = self.format.filename.partition(".")
        return self.format.filename if self.precision == "fp32" else f"{stem}-{self.precision}{dot}{suffix}"


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What a writer is given.

    Args:
        classifier: Trained model in evaluation mode.
        request: Format, precision and layout.
        images: Images to check the export on; int8 is calibrated on them.
        card: Model card in Markdown, for formats that show it.
        weights: SHA-256 of the weights in the bundle, for the report; empty for a model that has none.
    """

    classifier: "Classifier"
    request: ExportRequest
    images: "CheckImages"
    card: str = ""
    weights: str = ""
