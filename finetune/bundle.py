"""The trained model as a folder of safetensors and JSON: what every command after training reads.

``model.json`` holds everything except the tensors, ``model.safetensors`` the weights, ``head.safetensors`` the head alone,
``README.md`` a model card. ``model.json`` is written last and holds the hashes of the weights and of its own contents, so a
folder without it, or with other weights, is not a bundle; ``head.safetensors`` holds its own digest. No file is a pickle.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finetune.atomic_files import atomic_path, make_folder, write_json, write_text
from finetune.bundle_card import short_card
from finetune.checksums import DIGEST
from finetune.checksums import file_sha256 as file_sha256
from finetune.checksums import json_sha256 as json_sha256
from finetune.confidence.conformal import conformal_problems, read_conformal
from finetune.confidence.selective import curve_problems, read_curve
from finetune.confidence.temperature import HIGHEST, LOWEST
from finetune.confidence.thresholds import threshold_problems
from finetune.confidence.unknown import UnknownScore, score_problems
from finetune.errors import UserError, first_line, shortened
from finetune.file_errors import read_error
from finetune.file_schema import THRESHOLD
from finetune.models.classifier import Classifier, classifier_from_description
from finetune.models.description import description_problems
from finetune.models.size_limit import TooManyParametersError, parameters_at_most
from finetune.models.user_modules import modules_text, user_classes, user_targets
from finetune.models.weights import hash_of_backbone, save_head
from finetune.near_paths import did_you_mean_path
from finetune.resume_command import resume_command, resume_command_near
from finetune.run_names import CONFIG
from finetune.safe_files import inside, load_tensors, need, read_json, tensor_shapes
from finetune.safetensors_writer import write_tensors
from finetune.terminal import printable
from finetune.versions import versions

FORMAT = 1
UNKNOWN_TENSORS = "unknown.safetensors"
MODEL_JSON, MODEL_WEIGHTS, HEAD_WEIGHTS, CARD = "model.json", "model.safetensors", "head.safetensors", "README.md"

# keys of model.json that bundles of earlier versions lack
CALIBRATION, UNKNOWN, SELECTIVE, CONFORMAL = "calibration", "unknown", "selective", "conformal"
THRESHOLDS = "thresholds"

# key of model.json -> the type of its value; finetune.file_schema documents them
_KEYS: dict[str, type] = {
    "format": int,
    "model": dict,
    "stages": list,
    "backbone_hash": str,
    "weights_sha256": str,
    "metrics": dict,
    "data": dict,
    "training": dict,
    "versions": dict,
}


def save_bundle(
    classifier: Classifier,
    folder: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Write a bundle; an interrupted write leaves no ``model.json`` and can be repeated.

    A bundle with modules of your own names their classes in ``model.json`` and in its model card. It does not hold their
    code: :func:`load_bundle` takes a module of each class.

    Args:
        classifier: The trained network.
        folder: Folder of the bundle, created if missing.
        metrics: ``{"val": {...}, "test": {...}}``; None for a network that was not tested.
        data: Where the classes come from: fingerprint and counts; None if unknown.
        training: Seed, schedule, and origin of the initial weights; None if unknown.
        card: Model card in Markdown; None writes a short one: how to open the bundle and which images it takes.

    Raises:
        UserError: A module keeps state that is not a tensor.
    """
    folder = Path(folder).expanduser()
    model, kept = classifier.describe(), classifier.state_dict()
    if odd := [name for name, value in kept.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"state_dict: a bundle holds only tensors. Not a tensor: {shortened(odd)}. Keep it as a buffer, or as an argument "
            "of the constructor."
        )
    make_folder(folder)
    (folder / MODEL_JSON).unlink(missing_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    with atomic_path(folder / MODEL_WEIGHTS) as part:
        write_tensors(part, state)
    backbone_hash = hash_of_backbone(classifier.backbone)
    save_head(
        folder / HEAD_WEIGHTS,
        head=classifier.head,
        settings=classifier.head_settings,
        backbone_hash=backbone_hash,
        classes=classifier.classes,
        multi_label=classifier.multi_label,
    )
    (folder / UNKNOWN_TENSORS).unlink(missing_ok=True)
    if classifier.unknown is not None:
        with atomic_path(folder / UNKNOWN_TENSORS) as part:
            write_tensors(part, classifier.unknown.tensors())
    write_text(folder / CARD, short_card(classifier) if card is None else card)
    values = {
        "format": FORMAT,
        "model": model,
        "stages": list(classifier.stages),
        "backbone_hash": backbone_hash,
        "weights_sha256": file_sha256(folder / MODEL_WEIGHTS),
        "metrics": dict(metrics or {}),
        "data": dict(data or {}),
        "training": dict(training or {}),
        CALIBRATION: {"temperature": classifier.temperature},
        "versions": versions(),
    }
    if classifier.unknown is not None:
        values[UNKNOWN] = {"sha256": file_sha256(folder / UNKNOWN_TENSORS)}
    if classifier.selective is not None:
        values[SELECTIVE] = classifier.selective.to_plain()
    if classifier.conformal is not None:
        values[CONFORMAL] = classifier.conformal.to_plain()
    if set(classifier.thresholds) != {THRESHOLD}:
        values[THRESHOLDS] = list(classifier.thresholds)
    write_json(folder / MODEL_JSON, values | {DIGEST: json_sha256(values)})
    return folder


def _remedy(path: Path) -> str:
    return f"Get the whole folder again, or write it again with: {resume_command_near(path)}"


def find_bundle(path: str | Path) -> Path:
    """Return the bundle folder at a path: the folder itself, or ``model/`` in a run folder.

    Raises:
        UserError: There is none.
    """
    given = Path(path).expanduser()
    for folder in (given, given / "model"):
        # also if it is not a regular file: opening it reports what it is instead
        if os.path.lexists(folder / MODEL_JSON):
            return folder
    if not given.exists():
        raise UserError(f"RUN='{path}': no such folder.{did_you_mean_path(path, folders=True)}")
    if (given / CONFIG).is_file():
        raise UserError(
            f"RUN='{path}': this run has not finished, so it has no model yet. Continue with: {resume_command(path)}"
        )
    raise UserError(f"RUN='{path}': neither a run nor a bundle. Expected {MODEL_JSON} or model/{MODEL_JSON} in it.")


def read_model_json(folder: str | Path) -> dict[str, Any]:
    """Read and check ``model.json``.

    Raises:
        UserError: The file is damaged, has a newer format, or lacks a key.
    """
    path = inside(folder, MODEL_JSON, of="bundle")
    values = read_json(path, dict, remedy=_remedy(path))
    if type(values.get("format")) is not int:
        raise UserError(f"{path}: not a model description. It has no format number.")
    if values["format"] > FORMAT:
        theirs = values.get("versions")
        version = theirs.get("finetune", "of unknown version") if isinstance(theirs, dict) else "of unknown version"
        raise UserError(
            f"{path}: format {values['format']} is newer than this program reads ({FORMAT}). "
            f"It was written by finetune {printable(str(version))}; this is {versions()['finetune']}. Upgrade."
        )
    need(values, _KEYS, name=str(path), remedy=_remedy(path))
    problems = [
        *description_problems(values["model"]),
        *_calibration_problems(values.get(CALIBRATION)),
        *_unknown_problems(values.get(UNKNOWN)),
        *([] if values.get(SELECTIVE) is None else curve_problems(values[SELECTIVE])),
        *([] if values.get(CONFORMAL) is None else conformal_problems(values[CONFORMAL])),
        *_threshold_problems(values),
    ]
    if problems:
        raise UserError(f"{path}: damaged. {shortened(problems)}. {_remedy(path)}")
    # older bundles have no digest
    if DIGEST in values and values[DIGEST] != json_sha256(values):
        raise UserError(
            f"{path}: damaged. Its contents have changed since they were written (their SHA-256 differs). Restore a copy, or "
            f"write it again: delete results.json of its run, then {resume_command_near(path)}. If you changed it yourself, "
            f"remove the key {DIGEST!r}."
        )
    return values


def _calibration_problems(calibration: object) -> list[str]:
    if calibration is None:
        return []
    temperature = calibration.get("temperature") if isinstance(calibration, dict) else None
    if isinstance(temperature, float) and LOWEST <= temperature <= HIGHEST:
        return []
    return [f"calibration.temperature: must be a number from {LOWEST:g} to {HIGHEST:g}"]


def _threshold_problems(values: Mapping[str, Any]) -> list[str]:
    classes = values["model"].get("classes")
    if values.get(THRESHOLDS) is None or not isinstance(classes, list):
        return []
    return threshold_problems(values[THRESHOLDS], classes=len(classes))


def _unknown_problems(unknown: object) -> list[str]:
    digest = unknown.get("sha256") if isinstance(unknown, dict) else None
    return [] if unknown is None or isinstance(digest, str) else ["unknown.sha256: must be the digest of a file"]


def _read_unknown(folder: Path, values: Mapping[str, Any], *, features: int) -> UnknownScore | None:
    """Read the score of unknown images beside the weights; None if the bundle has none.

    Raises:
        UserError: The file is missing, damaged, or not the one that ``model.json`` describes.
    """
    if (described := values.get(UNKNOWN)) is None:
        return None
    path = inside(folder, UNKNOWN_TENSORS, of="bundle")
    if not os.path.lexists(path):
        raise UserError(f"{path}: missing. The bundle is incomplete. {_remedy(path)}")
    tensors = load_tensors(path)
    problems = score_problems(tensors, features=features, classes=len(values["model"]["classes"]))
    if not problems and file_sha256(path) != described["sha256"]:
        problems = [f"not the file that {MODEL_JSON} describes (their SHA-256 differs)"]
    if problems:
        raise UserError(f"{path}: damaged. {shortened(problems)}. {_remedy(path)}")
    return UnknownScore(**tensors)


def missing_classes_message(path: str, model: Mapping[str, Any], needed: Mapping[str, str]) -> str:
    """Return the message for a bundle that needs user-supplied classes that were not given.

    Args:
        path: Path of the bundle, as the user wrote it.
        model: The ``model`` entry of its ``model.json``.
        needed: The classes that were not given, by part.
    """
    classes = ", ".join(f"{printable(name)} ({part})" for part, name in needed.items())
    trust = (
        " A configuration named them, so --trust (in Python trust=True) imports and builds them; that runs code chosen by "
        "whoever made the model."
        if set(needed) <= set(user_targets(model))
        else " The command line cannot build it, as nothing names how: it was given as an object. For a head that commands can "
        "build, train with head._target_=module.Class and its folder on PYTHONPATH."
    )
    return (
        f"RUN={path!r}: needs classes that are not part of finetune: {classes}. None of it has been built. In Python give a "
        f"module of each: finetune.load({path!r}, {modules_text(model, needed)}), which "
        f"finetune.evaluate, finetune.export and the others take.{trust}"
    )


def load_bundle(path: str | Path, *, modules: Mapping[str, nn.Module] | None = None) -> Classifier:
    """Load the trained network in evaluation mode, on the CPU: uint8 images (B, C, H, W) to logits (B, K).

    Args:
        path: A bundle folder, or a run folder that has one.
        modules: A module of each user-supplied class that the bundle needs, as ``head`` and ``backbone``, built as before
            training; the bundle's weights are loaded into them.

    Raises:
        UserError: The folder is not a bundle, its weights are not the ones that it describes, or it needs classes that were not
            given.
    """
    folder = find_bundle(path)
    values = read_model_json(folder)
    needed = user_classes(values["model"])
    if lacking := {part: name for part, name in needed.items() if part not in (modules or {})}:
        raise UserError(missing_classes_message(str(path), values["model"], lacking))
    weights = inside(folder, MODEL_WEIGHTS, of="bundle")
    if not os.path.lexists(weights):
        raise UserError(
            f"{weights}: missing. The bundle is incomplete; write it again with: {resume_command_near(weights)}"
        )
    shapes = tensor_shapes(weights)
    if file_sha256(weights) != values["weights_sha256"]:
        raise UserError(
            f"{weights}: not the weights that {MODEL_JSON} describes (their SHA-256 differs). {_remedy(weights)}"
        )
    numbers = sum(math.prod(shape) for shape in shapes.values())
    try:
        with parameters_at_most(numbers, name=str(folder / MODEL_JSON)):
            classifier = classifier_from_description(values["model"], modules=modules)
    except TooManyParametersError:
        raise
    except UserError as error:
        if modules:
            raise
        raise UserError(f"{folder / MODEL_JSON}: describes a network that cannot be built. {error}") from error
    except Exception as error:  # a library may raise anything for arguments that it does not know
        if (failed := read_error(error, folder / MODEL_JSON)) is not None:
            raise failed from error
        why = first_line(error)
        raise UserError(f"{folder / MODEL_JSON}: describes a network that cannot be built. {why}") from error
    state = load_tensors(weights)
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        if modules:
            found = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
            raise UserError(
                f"modules: must take the weights in {weights}. {shortened(found)}. Build {' and '.join(needed.values())} with "
                "the arguments that they had in training."
            ) from error
        raise UserError(f"{weights}: does not fit the network that {MODEL_JSON} describes. {error}") from error
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{weights}: holds values that are not finite: {shortened(broken)}. "
            "Such a network predicts nothing; train it again with a smaller learning rate."
        )
    classifier.temperature = values.get(CALIBRATION, {}).get("temperature", 1.0)
    classifier.unknown = _read_unknown(folder, values, features=classifier.backbone.num_features)
    classifier.selective = None if values.get(SELECTIVE) is None else read_curve(values[SELECTIVE])
    classifier.conformal = None if values.get(CONFORMAL) is None else read_conformal(values[CONFORMAL])
    classifier.thresholds = tuple(values.get(THRESHOLDS) or classifier.thresholds)
    return classifier.eval()
