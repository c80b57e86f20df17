"""Write an export to a temporary folder beside its target, check it, and move it into place only if it passes."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from finetune.atomic_files import write_json, write_text
from finetune.errors import RunError, UserError
from finetune.export.formats import check_request
from finetune.export.formats.kind import ExportJob, ExportRequest
from finetune.export.parity import ask_clients, compare, make_reference
from finetune.export.parity_report import ParityReport
from finetune.export.parts import check_part
from finetune.plain import to_plain
from finetune.report.loading_snippets import how_to_load

PARITY = "parity.json"


def export_checked(job: ExportJob, target: Path) -> ParityReport:
    """Export a model or a part of it, check the export, and move it into place.

    Args:
        job: What to export.
        target: File or folder to write. An earlier export there is replaced; anything else is refused.

    Returns:
        The parity report. It is also written to ``parity.json`` inside a folder, or to ``NAME.parity.json`` beside a file.

    Raises:
        UserError: The format cannot hold the model, or something other than an export exists at the target.
        RunError: The export's predictions differ from the model's. The export is deleted; its report is kept.
    """
    request, export_format = job.request, job.request.format
    check_request(request)
    report_path = check_target(request, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(work, ignore_errors=True)
    staged = work / target.name
    try:
        (staged if export_format.is_folder else work).mkdir(parents=True)
        export_format.write(job, staged)
        if export_format.has_readme:
            write_text(
                staged / "README.md",
                how_to_load(
                    export_format.name,
                    job.classifier.input_spec,
                    path=".",
                    reading=None if job.images.decode is None else job.images.decode.to_plain(),
                ),
            )
        report = (
            check_part(job.classifier, export_format, staged, job.images)
            if export_format.part is not None
            else _check_whole(job, staged)
        )
        if not report.passed:
            failed = target.with_name(f"{target.name}.failed.parity.json")
            write_json(failed, to_plain(report))
            problem = (
                "the part computes something different from the trained model"
                if export_format.part is not None
                else "the export's predictions differ from the trained model's"
            )
            earlier = "; the earlier export is unchanged" if target.exists() else ""
            raise RunError(
                f"--format {export_format.name}: {problem}, so it was deleted{earlier}. {'. '.join(report.problems)}. "
                f"Details: {failed}"
            )
        if export_format.is_folder:
            write_json(staged / PARITY, to_plain(report))
        _move_into_place(staged, target)
        if not export_format.is_folder:
            write_json(report_path, to_plain(report))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return report


def check_target(request: ExportRequest, target: Path) -> Path:
    """Return the path for the report of an export to ``target``, after checking that the export would overwrite nothing else.

    Raises:
        UserError: The target is a folder or a file that is not one of our exports, a folder where a file must go, or a part
            without its suffix.
    """
    if request.format.is_folder:
        if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / PARITY).is_file())):
            raise UserError(f"--output {target}: must be new, empty or an earlier export. It holds other files.")
        return target / PARITY
    if request.format.part is not None and target.suffix != (suffix := Path(request.filename).suffix):
        raise UserError(f"--output {target}: must end in {suffix}.")
    if target.is_dir():
        raise UserError(f"--output {target}: must be a file. It is a folder. Give {target / request.filename}.")
    report = target.with_name(f"{target.name}.parity.json")
    if target.exists() and not report.is_file():
        raise UserError(
            f"--output {target}: must be new or an earlier export, which has {report.name} beside it. It is another file. "
            "Choose another name."
        )
    return report


def _check_whole(job: ExportJob, staged: Path) -> ParityReport:
    """Compare an export's predictions with the model's; measure its speed if the format supports it."""
    request, export_format, images = job.request, job.request.format, job.images
    reference = make_reference(
        job.classifier, images.files, origin=images.origin, targets=images.targets, decode=images.decode
    )
    (answer,) = ask_clients([(export_format, staged / export_format.opened_file, reference)])
    report = compare(export_format.name, answer, reference, classes=job.classifier.classes, precision=request.precision)
    if report.passed and export_format.measure is not None:
        return replace(report, speed=export_format.measure(job, staged))
    return report


def _move_into_place(made: Path, target: Path) -> None:
    """Rename into place; move an earlier folder aside first, because a folder cannot be renamed onto a non-empty one."""
    with (made if made.is_file() else made / PARITY).open("rb") as written:
        os.fsync(written.fileno())
    if not target.is_dir():
        os.replace(made, target)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.earlier.part")
    os.replace(target, aside)
    try:
        os.replace(made, target)
    except OSError:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
