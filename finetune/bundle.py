"""The trained model as a folder of safetensors and JSON: what every command after training reads.

``model.json`` holds everything but numbers in bulk, ``model.safetensors`` the weights, ``head.safetensors`` the head alone,
``README.md`` a model card. ``model.json`` is written last and names the hash of the weights, so a folder without it, or with
other weights, is not a bundle. Nothing in it is a pickle.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.atomic import atomic_path, write_json, write_text
from finetune.errors import UserError, shortened
from finetune.models.classifier import Classifier, classifier_from_description
from finetune.models.weights import save_head, state_hash
from finetune.versions import versions

FORMAT = 1
MODEL_JSON, MODEL_WEIGHTS, HEAD_WEIGHTS, CARD = "model.json", "model.safetensors", "head.safetensors", "README.md"

# key of model.json -> the type of its value; docs in `docs` of finetune.results
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


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_bundle(
    folder: str | Path,
    classifier: Classifier,
    *,
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
    training: Mapping[str, Any],
    card: str,
) -> Path:
    """Write a bundle; an interrupted write leaves no ``model.json`` and can be repeated.

    Args:
        folder: Made where it is missing.
        classifier: The trained network.
        metrics: ``{"val": {...}, "test": {...}}``.
        data: Where the classes come from: fingerprint and counts.
        training: Seed, schedule, and where the weights started.
        card: Markdown for people.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_JSON).unlink(missing_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    with atomic_path(folder / MODEL_WEIGHTS) as part:
        save_file(state, part)
    backbone_hash = state_hash(classifier.backbone)
    save_head(folder / HEAD_WEIGHTS, head=classifier.head, backbone_hash=backbone_hash, classes=classifier.classes)
    write_text(folder / CARD, card)
    write_json(
        folder / MODEL_JSON,
        {
            "format": FORMAT,
            "model": classifier.describe(),
            "stages": list(classifier.stages),
            "backbone_hash": backbone_hash,
            "weights_sha256": file_sha256(folder / MODEL_WEIGHTS),
            "metrics": dict(metrics),
            "data": dict(data),
            "training": dict(training),
            "versions": versions(),
        },
    )
    return folder


def find_bundle(path: str | Path) -> Path:
    """The bundle folder at a path: the folder itself, or ``model/`` in a run folder.

    Raises:
        UserError: There is none.
    """
    given = Path(path).expanduser()
    for folder in (given, given / "model"):
        if (folder / MODEL_JSON).is_file():
            return folder
    if not given.exists():
        raise UserError(f"RUN='{path}': no such folder.")
    if (given / "config.yaml").is_file():
        raise UserError(
            f"RUN='{path}': this run has not finished, so it has no model yet. Go on with: finetune resume {path}"
        )
    raise UserError(f"RUN='{path}': neither a run nor a bundle. Expected {MODEL_JSON} or model/{MODEL_JSON} in it.")


def read_model_json(folder: str | Path) -> dict[str, Any]:
    """The contents of ``model.json``, checked.

    Raises:
        UserError: It is damaged, of a newer format, or lacks a key.
    """
    path = Path(folder) / MODEL_JSON
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read. {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise UserError(f"{path}: not a model description. It has no format number.")
    if values["format"] > FORMAT:
        raise UserError(
            f"{path}: format {values['format']} is newer than this program reads ({FORMAT}). "
            f"It was written by finetune {values.get('versions', {}).get('finetune', 'of unknown version')}; upgrade."
        )
    wrong = [key for key, kind in _KEYS.items() if not isinstance(values.get(key), kind)]
    if wrong:
        raise UserError(f"{path}: damaged. Missing or of another type: {shortened(wrong)}.")
    return values


def load_bundle(path: str | Path) -> Classifier:
    """The trained network, in evaluation mode, on the CPU: uint8 images (B, C, H, W) to logits (B, K).

    Args:
        path: A bundle folder, or a run folder that has one.

    Raises:
        UserError: It is no bundle, or its weights are not the ones that it describes.
    """
    folder = find_bundle(path)
    values = read_model_json(folder)
    weights = folder / MODEL_WEIGHTS
    if not weights.is_file():
        raise UserError(f"{weights}: missing. The bundle is not whole; write it again with: finetune resume RUN")
    if file_sha256(weights) != values["weights_sha256"]:
        raise UserError(f"{weights}: not the weights that {MODEL_JSON} describes (their SHA-256 differs).")
    classifier = classifier_from_description(values["model"])
    try:
        classifier.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{weights}: does not fit the network that {MODEL_JSON} describes. {error}") from error
    return classifier.eval()
