"""Write an export to a temporary folder beside its target, check it, and move it into place only if it passes."""

import os
from dataclasses import replace
from pathlib import Path

from finetune.atomic_files import atomic_path, replace_folder, work_folder, write_json, write_text
from finetune.errors import RunError, UserError
from finetune.export.formats import check_request
from finetune.export.formats.kind import ExportFormat, ExportJob, ExportRequest
from finetune.export.parity import ask_clients, compare, make_reference
from finetune.export.parity_report import ParityReport
from finetune.export.parts import check_part
from finetune.plain import to_plain
from finetune.report.loading_snippets import how_to_load
from finetune.safe_files import LARGEST_TEXT, check_regular, read_bytes

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
    check_request(job.request)
    check_target(job.request, target)
    # a path such as FOLDER/.. has no name of its own
    target = Path(os.path.abspath(target))
    with work_folder(target) as work:
        staged = work / target.name
        _write(job, staged)
        report = replace(_check(job, staged), weights=job.weights)
        if not report.passed:
            raise _refused(job.request.format, target, report)
        if job.request.format.is_folder:
            write_json(staged / PARITY, to_plain(report))
            _move_into_place(staged, target)
        else:
            _move_with_report(staged, target, report)
    return report


def report_path(request: ExportRequest, target: Path) -> Path:
    """Return the path of the parity report of an export to ``target``."""
    return target / PARITY if request.format.is_folder else _beside(target)


def _beside(target: Path) -> Path:
    """Return the path of the report of an export that is a file."""
    whole = Path(os.path.abspath(target))
    return whole.with_name(f"{whole.name}.parity.json")


def check_target(request: ExportRequest, target: Path) -> None:
    """Check that an export to ``target`` would overwrite nothing but an earlier export.

    Raises:
        UserError: The target is a folder or a file that is not one of our exports, the current folder, a folder where a file
            must go, or a part without its suffix.
    """
    report = report_path(request, target)
    if request.format.is_folder:
        if Path.cwd().is_relative_to(target.resolve()):
            raise UserError(
                f"--output {target}: must not be the current folder or one around it, because an export is put in its place as a "
                "whole. Give the name of a new folder."
            )
        if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not report.is_file())):
            raise UserError(f"--output {target}: must be new, empty or an earlier export. It holds other files.")
        return
    if request.format.part is not None and target.suffix != (suffix := Path(request.filename).suffix):
        raise UserError(f"--output {target}: must end in {suffix}.")
    if target.is_dir():
        raise UserError(f"--output {target}: must be a file. It is a folder. Give {target / request.filename}.")
    if os.path.lexists(report):
        check_regular(report, largest=LARGEST_TEXT)
    if target.exists() and not report.is_file():
        raise UserError(
            f"--output {target}: must be new or an earlier export, which has {report.name} beside it. It is another file. "
            "Choose another name."
        )


def _write(job: ExportJob, staged: Path) -> None:
    """Write the export, with a README.md where its format has one."""
    export_format = job.request.format
    if export_format.is_folder:
        staged.mkdir()
    export_format.write(job, staged)
    if export_format.has_readme:
        reading = None if job.images.decode_options is None else job.images.decode_options.to_plain()
        classifier = job.classifier
        readme = how_to_load(
            export_format.name, classifier.input_spec, path=".", reading=reading, multi_label=classifier.multi_label
        )
        write_text(staged / "README.md", readme)


def _check(job: ExportJob, staged: Path) -> ParityReport:
    """Compare an export with the trained model, or a part of it with the same part alone."""
    if job.request.format.part is not None:
        return check_part(job.classifier, job.request.format, staged, job.images, folder=staged.parent)
    return _check_whole(job, staged)


def _refused(export_format: ExportFormat, target: Path, report: ParityReport) -> RunError:
    """Keep the report of an export that differs from the model, and return the error about it."""
    failed = target.with_name(f"{target.name}.failed.parity.json")
    write_json(failed, to_plain(report))
    problem = (
        "the part computes something different from the trained model"
        if export_format.part is not None
        else "the export's predictions differ from the trained model's"
    )
    earlier = "; the earlier export is unchanged" if target.exists() else ""
    return RunError(
        f"--format {export_format.name}: {problem}, so it was deleted{earlier}. {'. '.join(report.problems)}. "
        f"Details: {failed}"
    )


def _check_whole(job: ExportJob, staged: Path) -> ParityReport:
    """Compare an export's predictions with the model's; measure its speed if the format supports it."""
    request, export_format, images = job.request, job.request.format, job.images
    reference = make_reference(
        job.classifier, images.files, origin=images.origin, targets=images.targets, decode_options=images.decode_options
    )
    (answer,) = ask_clients([(export_format, staged / export_format.opened_file, reference)], folder=staged.parent)
    report = compare(export_format.name, answer, reference, classes=job.classifier.classes, precision=request.precision)
    if report.passed and export_format.measure is not None:
        return replace(report, speed=export_format.measure(job, staged))
    return report


def _move_with_report(made: Path, target: Path, report: ParityReport) -> None:
    """Put the report in place before the file: a file without its report could not be told from one of the user's."""
    told = _beside(target)
    earlier = read_bytes(told) if os.path.lexists(told) else None
    write_json(told, to_plain(report))
    try:
        _move_into_place(made, target)
    except BaseException:
        if earlier is None:
            told.unlink()
        else:
            with atomic_path(told) as part:
                part.write_bytes(earlier)
        raise


def _move_into_place(made: Path, target: Path) -> None:
    """Rename into place, a folder also where there is an earlier one."""
    with (made if made.is_file() else made / PARITY).open("r+b") as written:
        os.fsync(written.fileno())
    if made.is_dir():
        replace_folder(made, target)
    else:
        os.replace(made, target)
