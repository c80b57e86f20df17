"""Write the model of a run, or a part of it, in another program's format, once it agrees with the trained model."""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.atomic_files import work_folder
from finetune.errors import UserError, first_line
from finetune.export.formats import FORMATS, check_request
from finetune.export.formats.kind import ExportJob, ExportRequest
from finetune.runners.bundle_modules import modules_of
from finetune.runners.run_data import data_config
from finetune.safe_files import inside, leads_out, read_text
from finetune.terminal_log import show, show_log

if TYPE_CHECKING:
    from finetune.export.images import CheckImages
    from finetune.models.classifier import Classifier


def export_run(
    run: str,
    form: str,
    *,
    output: Path | None,
    images: Sequence[str] | None,
    precision: str,
    layout: str,
    check: int | None,
    trust: bool,
    load: "Callable[[], Classifier] | None" = None,
) -> tuple[Path, list[str]]:
    """Write an export of a run once it agrees with the trained model.

    Args:
        run: Run or bundle folder.
        form: Name of the format.
        output: File or folder to write; None uses ``exports/`` in the run.
        images: Images to compare on; None uses the run's validation images.
        precision: ``fp32``, ``fp16`` or ``int8``.
        layout: ``nhwc`` or ``nchw``.
        check: Number of images to compare on; None uses 64, or 256 for int8.
        trust: Whether to build user-supplied classes that the run names.
        load: Function that returns the run's model; None loads it from the run.

    Returns:
        The file or folder written, and lines about the comparison.

    Raises:
        UserError: The export cannot be made.
        RunError: The export does not agree with the model.
    """
    if check is None:
        # at eight bits the accuracy is also reported, which needs more images
        check = 256 if precision == "int8" else 64

    from finetune.bundle import find_bundle

    find_bundle(run)  # reports a wrong path before torch is loaded

    from finetune.bundle import CARD, load_bundle, read_model_json
    from finetune.export.export import check_target, export_checked
    from finetune.inference.decode_options import decode_options_of

    request = ExportRequest(format=FORMATS[form], precision=precision, layout=layout)  # type: ignore[arg-type]  # validated by the caller
    check_request(request)
    folder = Path(run).expanduser()
    target = output or inside(folder, Path("exports") / request.filename)
    check_target(request, target)
    classifier = load_bundle(run, modules=modules_of(run, trust=trust)) if load is None else load()
    # not the system's own temporary folder, in which nothing would find it again after a kill
    whole = Path(os.path.abspath(target))
    with work_folder(whole.with_name(f"{whole.name}.images")) as made:
        chosen = choose_images(run, classifier, images, count=check, int8=precision == "int8", folder=made)
        chosen = replace(chosen, decode_options=decode_options_of(run))
        weights = read_model_json(find_bundle(run))["weights_sha256"]
        job = ExportJob(classifier=classifier, request=request, images=chosen, card=_model_card(run), weights=weights)
        report = export_checked(job, target)
    if report.speed is not None:
        from finetune.report.export_section import tell_card

        card = find_bundle(run) / CARD
        if (elsewhere := leads_out(card, folder)) is None:
            tell_card(card, target.parent, weights=weights)
        else:
            show_log()
            show(f"{card}: does not tell of this export. A link leads out of the run, to {elsewhere}.")
    notes = [request.format.caution.replace("`", ""), request.format.hint.format(target=shlex.quote(str(target)))]
    return target, [*report.summary(), *filter(None, notes)]


def _model_card(run: str) -> str:
    """Return the text of a run's model card, or a line in its place."""
    from finetune.bundle import CARD, find_bundle

    card = inside(find_bundle(run), CARD, of="bundle")
    return read_text(card) if os.path.lexists(card) else "There is no model card."


def choose_images(
    run: str, classifier: "Classifier", paths: Sequence[str] | None, *, count: int, int8: bool, folder: Path
) -> "CheckImages":
    """Choose images to compare an export on: the given ones, the run's validation images, or synthetic ones (and print why).

    Raises:
        UserError: There is no image at the given paths, or int8 has no real images to calibrate on.
    """
    from finetune.build.data import build_source
    from finetune.export.images import images_of_files, images_of_source, synthetic_images
    from finetune.export.quantize import CALIBRATION_IMAGES
    from finetune.inference.image_paths import find_images

    calibration = CALIBRATION_IMAGES if int8 else 0
    if paths:
        return images_of_files(list(find_images(paths)), count=count, calibration=calibration)
    try:
        config = data_config(run, [])
        config.input.channels = classifier.input_spec.channels
        validation = images_of_source(
            build_source(config),
            split="val",
            classes=classifier.classes,
            count=count,
            calibration=calibration,
            folder=folder,
        )
        why = "the run has no validation images."
    except UserError as error:
        validation, why = None, first_line(error)
    if validation is not None:
        return validation
    if int8:
        raise UserError(f"--precision int8: needs images like those it will see, for calibration. {why} Give --images.")
    show_log()
    show(f"compared on synthetic images: {why} --images PATH compares on yours.")
    return synthetic_images(folder, channels=classifier.input_spec.channels, count=count)
