"""``--format web``: a folder with one page that runs the model in a browser: no Python, no network, nothing leaves the computer.

``python -m http.server`` in that folder is enough to serve it. onnxruntime-web is vendored from its npm package, stored
compressed in this package and checked by hash; the page's own files are in ``finetune/export/web``.
"""

import hashlib
import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.atomic_files import write_json, write_text
from finetune.errors import UserError
from finetune.export.formats.kind import ExportFormat, ExportJob
from finetune.export.formats.onnx import LIBRARIES, OnnxClient
from finetune.export.web_page import PAGE, WEB_FILES, render_page

if TYPE_CHECKING:
    from finetune.export.images import CheckImages
    from finetune.models.classifier import Classifier

MODEL = "model.onnx"
# pixels: between the two passes of its resize the graph holds so many rows of floats, 270 MB at a width of 224; where it crops,
# it computes the rows of the crop alone
_LONGEST_SQUASHED = 100_000
_OWN = ("style.css", "page.mjs", "model.mjs", "pixels.mjs")


def export_web(classifier: "Classifier", folder: Path, images: "CheckImages", *, card: str) -> None:
    """Write the folder.

    Args:
        classifier: Trained model in evaluation mode, on the CPU.
        folder: Existing empty folder.
        images: Source of the settings with which the run reads files.
        card: Model card in Markdown.

    Raises:
        UserError: The model takes channels that browsers cannot produce.
    """
    from finetune.data.decode import DecodeOptions
    from finetune.data.transforms import eval_view
    from finetune.export.export_metadata import KEY, provenance
    from finetune.export.onnx import export_onnx

    spec = classifier.input_spec
    if spec.channels not in (1, 3):
        raise UserError(
            f"--format web: browsers read grey and colour. This model takes {spec.channels} channels. Use --format onnx."
        )
    decode_options = images.decode_options or DecodeOptions(channels=spec.channels)
    export_onnx(classifier, folder / MODEL, decode_options=images.decode_options)
    write_json(
        folder / "model.json",
        {
            "classes": list(classifier.classes),
            # with several labels, the probability above which each class is predicted
            "thresholds": list(classifier.thresholds) if classifier.multi_label else None,
            "channels": spec.channels,
            "maxPixels": decode_options.max_pixels,
            "longestSide": _LONGEST_SQUASHED if spec.crop_mode == "squash" else None,
            # finetune itself reads JPEG files whose shorter side has at least this many pixels at a reduced scale
            "reducedFrom": 2 * eval_view(spec).min_side,
            # a rule, or the numbers that become black and white
            "highDepth": list(decode_options.integer_range)
            if decode_options.integer_range and decode_options.high_depth == "full"
            else decode_options.high_depth,
            KEY: provenance(classifier, layout="nhwc"),
        },
    )
    write_text(folder / PAGE, page(classifier, card))
    for name in _OWN:
        write_text(folder / name, (WEB_FILES / name).read_text(encoding="utf-8"))
    write_vendored(folder / "vendor")


def page(classifier: "Classifier", card: str) -> str:
    """Render the HTML; names and card are escaped, so HTML inside the card is displayed, not interpreted."""
    return render_page(
        title=f"{classifier.backbone.name}, {len(classifier.classes)} classes",
        classes=classifier.classes,
        card=card,
        where="Images stay on this computer: the model runs in this page.",
    )


def write_vendored(folder: Path) -> None:
    """Write onnxruntime-web and its licence, each file checked by its hash."""
    folder.mkdir()
    vendor = WEB_FILES / "vendor"
    vendored = json.loads((vendor / "vendored.json").read_text(encoding="utf-8"))
    for name, digest in vendored["files"].items():
        content = lzma.decompress((vendor / f"{name}.xz").read_bytes())
        if hashlib.sha256(content).hexdigest() != digest:
            raise UserError(
                f"{vendor / name}.xz: not the file of {vendored['package']} {vendored['version']}. Reinstall."
            )
        (folder / name).write_bytes(content)
    for name in ("LICENSE", "vendored.json"):
        write_text(folder / name, (vendor / name).read_text(encoding="utf-8"))


def _write(job: ExportJob, path: Path) -> None:
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
