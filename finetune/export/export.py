"""Write an export to a temporary folder beside its target, check it, and move it into place only if it passes."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.atomic_files import write_json, write_text
from finetune.errors import RunError, UserError
from finetune.export.graph import Layout
from finetune.export.images import CheckImages
from finetune.export.parity import ask_clients, compare, make_reference
from finetune.models.classifier import Classifier

PARITY = "parity.json"
FOLDERS = ("timm", "torchvision", "transformers", "web")
# format -> modules that must be installed, and the extra that installs them
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "transformers": (("transformers",), "transformers"),
    "web": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
}
_FULL = "full.onnx"
_FILE_NAMES = {
    "onnx": "model.onnx",
    "torch_export": "model.pt2",
    "head": "head.safetensors",
    "backbone": "backbone.safetensors",
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to export.

    Args:
        form: ``onnx``, ``torch_export``, ``timm``, ``torchvision``, ``transformers`` or ``web``.
        precision: ``fp32``; for ONNX also ``fp16`` and ``int8``.
        layout: Pixel layout that ONNX and torch_export take as input.
    """

    form: str
    precision: str = "fp32"
    layout: Layout = "nhwc"

    def check(self) -> None:
        """Check that the combination exists and that the libraries it needs are installed.

        Raises:
            UserError: The format has no such precision, or a library is missing.
        """
        if self.precision != "fp32" and self.form != "onnx":
            raise UserError(
                f"--precision {self.precision}: exists for --format onnx only. Given: --format {self.form}."
            )
        modules, extra = NEEDS.get(self.form, ((), ""))
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"--format {self.form}: needs {', '.join(modules)}. Not installed: {', '.join(missing)}. "
                f"Install with: pip install 'stagewise-finetune[{extra}]'"
            )

    @property
    def filename(self) -> str:
        """Return the export's usual file or folder name."""
        name = _FILE_NAMES.get(self.form, self.form)
        stem, dot, suffix = name.partition(".")
        return name if self.precision == "fp32" else f"{stem}-{self.precision}{dot}{suffix}"


def hand_over(
    classifier: Classifier, wanted: Wanted, target: Path, images: CheckImages, *, card: str = ""
) -> dict[str, Any]:
    """Export the model, check the export, and move it into place.

    Args:
        classifier: Trained model in evaluation mode.
        wanted: Format, precision and layout.
        target: File or folder to write. An earlier export there is replaced; anything else is refused.
        images: Images to check the export on.
        card: Model card in Markdown, for formats that show it.

    Returns:
        The parity report. It is also written to ``parity.json`` inside a folder, or to ``NAME.parity.json`` beside a file.

    Raises:
        UserError: The format cannot hold the model, or something other than an export exists at the target.
        RunError: The export's predictions differ from the model's. The export is deleted; its report is kept.
    """
    wanted.check()
    report_path = refuse_strangers(wanted, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(work, ignore_errors=True)
    staged = work / target.name
    try:
        if wanted.form in FOLDERS:
            staged.mkdir(parents=True)
        else:
            work.mkdir()
        _write(classifier, wanted, staged, images, card)
        reference = make_reference(
            classifier, images.files, told=images.told, targets=images.targets, reading=images.reading
        )
        # ONNX Runtime opens the model of a web page here, not a browser
        opened = ("onnx", staged / "model.onnx") if wanted.form == "web" else (wanted.form, staged)
        (answer,) = ask_clients([(*opened, reference)])
        report = compare(wanted.form, answer, reference, classes=classifier.classes, precision=wanted.precision)
        if not report["passed"]:
            failed = target.with_name(f"{target.name}.parity.json")
            write_json(failed, report)
            raise RunError(
                f"--format {wanted.form}: the export does not predict what the trained model does, so it was not kept. "
                f"{'. '.join(report['problems'])}. All figures: {failed}"
            )
        if wanted.form == "onnx":
            from finetune.export.speed import measure_speed

            full = {"fp32": work / _FULL} if wanted.precision == "int8" else {}
            report["speed"] = measure_speed(classifier, {**full, wanted.precision: staged}, layout=wanted.layout)
        if wanted.form in FOLDERS:
            write_json(staged / PARITY, report)
        _put(staged, target)
        if wanted.form not in FOLDERS:
            write_json(report_path, report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def refuse_strangers(wanted: Wanted, target: Path) -> Path:
    """Return the path for the report of an export to ``target``, after checking that the export would overwrite nothing else.

    Raises:
        UserError: The target is a folder that is not one of our exports, or a folder where a file must go.
    """
    if wanted.form in FOLDERS:
        if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / PARITY).is_file())):
            raise UserError(f"--output {target}: must be new, empty or an earlier export. It holds other files.")
        return target / PARITY
    if target.is_dir():
        raise UserError(f"--output {target}: must be a file. It is a folder. Give {target / wanted.filename}.")
    return target.with_name(f"{target.name}.parity.json")


def _write(classifier: Classifier, wanted: Wanted, made: Path, images: CheckImages, card: str) -> None:
    from finetune.export.library_formats import export_timm, export_torchvision, export_transformers
    from finetune.report.loading_snippets import how_to_load

    layouts: dict[str, Callable[[Classifier, Path], None]] = {
        "timm": export_timm,
        "torchvision": export_torchvision,
        "transformers": export_transformers,
    }
    if wanted.form in layouts:
        layouts[wanted.form](classifier, made)
        write_text(made / "README.md", how_to_load(wanted.form, classifier.input_spec, path="."))
    elif wanted.form == "web":
        from finetune.export.web_page import export_web

        export_web(classifier, made, images, card=card)
    elif wanted.form == "torch_export":
        from finetune.export.torch_export import export_torch

        export_torch(classifier, made, layout=wanted.layout, reading=images.reading)
    else:
        from finetune.export.onnx import export_onnx

        full = made.with_name(_FULL) if wanted.precision == "int8" else made
        export_onnx(classifier, full, layout=wanted.layout, half=wanted.precision == "fp16", reading=images.reading)
        if wanted.precision == "int8":
            from finetune.export.quantize import quantise_onnx

            channels = classifier.input_spec.channels
            quantise_onnx(
                full,
                made,
                files=images.calibration,
                channels=channels,
                layout=wanted.layout,
                reading=images.reading,
            )


def _put(made: Path, target: Path) -> None:
    """Rename into place; move an earlier folder aside first, because a folder cannot be renamed onto a non-empty one."""
    aside = made.with_name(f"{made.name}.earlier")
    if target.is_dir():
        os.replace(target, aside)
    else:
        with made.open("rb") if made.is_file() else open(made / PARITY, "rb") as written:
            os.fsync(written.fileno())
    os.replace(made, target)
