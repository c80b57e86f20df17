"""Write an export beside its target, check it, and only then put it in its place."""

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
# format -> what must be installed, and the extra that brings it
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
        layout: Of the pixels that ONNX and torch_export take.
    """

    form: str
    precision: str = "fp32"
    layout: Layout = "nhwc"

    def check(self) -> None:
        """Whether the combination exists and its libraries are there.

        Raises:
            UserError: Not so.
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
        """The export's usual name."""
        name = _FILE_NAMES.get(self.form, self.form)
        stem, dot, suffix = name.partition(".")
        return name if self.precision == "fp32" else f"{stem}-{self.precision}{dot}{suffix}"


def hand_over(
    classifier: Classifier, wanted: Wanted, target: Path, images: CheckImages, *, card: str = ""
) -> dict[str, Any]:
    """Export, check, and put in place.

    Args:
        classifier: In evaluation mode.
        wanted: What to write.
        target: File or folder; an earlier export there is replaced, anything else refused.
        images: To check on.
        card: The model card, for a form that shows it.

    Returns:
        The parity report, which also lies in ``parity.json`` inside a folder or ``NAME.parity.json`` beside a file.

    Raises:
        UserError: The format cannot hold the model, or something else stands at the target.
        RunError: The export does not predict what the model does; it is not left behind, the report is.
    """
    wanted.check()
    report_path = refuse_strangers(wanted, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(work, ignore_errors=True)
    made = work / target.name
    try:
        if wanted.form in FOLDERS:
            made.mkdir(parents=True)
        else:
            work.mkdir()
        _write(classifier, wanted, made, images, card)
        reference = make_reference(
            classifier, images.files, told=images.told, targets=images.targets, reading=images.reading
        )
        # of a page the model is opened by ONNX Runtime here, and not by a browser
        opened = ("onnx", made / "model.onnx") if wanted.form == "web" else (wanted.form, made)
        (said,) = ask_clients([(*opened, reference)])
        report = compare(wanted.form, said, reference, classes=classifier.classes, precision=wanted.precision)
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
            report["speed"] = measure_speed(classifier, {**full, wanted.precision: made}, layout=wanted.layout)
        if wanted.form in FOLDERS:
            write_json(made / PARITY, report)
        _put(made, target)
        if wanted.form not in FOLDERS:
            write_json(report_path, report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def refuse_strangers(wanted: Wanted, target: Path) -> Path:
    """Where the report of an export at the target goes, if nothing else stands there.

    Raises:
        UserError: A folder stands there that is not an export of ours, or a folder where a file is to go.
    """
    if wanted.form in FOLDERS:
        if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / PARITY).is_file())):
            raise UserError(
                f"--output {target}: must be new, empty or an earlier export. There is something else in it."
            )
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
    """Rename into place; an earlier folder is moved aside first, since a folder cannot be renamed onto a full one."""
    aside = made.with_name(f"{made.name}.earlier")
    if target.is_dir():
        os.replace(target, aside)
    else:
        with made.open("rb") if made.is_file() else open(made / PARITY, "rb") as written:
            os.fsync(written.fileno())
    os.replace(made, target)
