"""Export only the trained head or only the trained backbone as a safetensors file, checked before it is put in place.

Plain PyTorch (for a backbone, the library that its network comes from) opens the file in a fresh process that cannot import
this package, and does its half of the work on real images; the probabilities must equal those of the whole model.
"""

import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.export.images import CheckImages
from finetune.export.parity import BATCH, FP32, difference, make_reference, run_client
from finetune.models.classifier import Classifier
from finetune.models.heads import HEADS
from finetune.models.own_modules import own_classes
from finetune.models.weights import save_backbone, save_head, state_hash


def export_head(classifier: Classifier, path: Path) -> None:
    """Write the head with its class names and the hash of its backbone's weights."""
    save_head(
        path,
        head=classifier.head,
        settings=classifier.head_settings,
        backbone_hash=state_hash(classifier.backbone),
        classes=classifier.classes,
        multi_label=classifier.multi_label,
    )


def export_backbone(classifier: Classifier, path: Path) -> None:
    """Write the backbone's state dict under its library's own tensor names, with a description beside it."""
    save_backbone(path, backbone=classifier.backbone, size=classifier.input_spec.size)


@torch.inference_mode()
def check_part(classifier: Classifier, form: str, path: Path, images: CheckImages) -> dict[str, Any]:
    """Report the largest difference of a probability when a part's own client does its half of the work."""
    source = classifier.backbone.source
    report: dict[str, Any] = {"format": form, "precision": "fp32", "images": images.told, "problems": [], "remarks": []}
    own = own_classes(classifier.describe())
    alone = "finetune" if form == "backbone" and source == "residual" else own.get(form)
    if alone:
        report["remarks"].append(f"only {alone} can build its network, so no other library can open it: not compared")
        return report | {"opened_by": "none", "unreadable": 0, "passed": True}
    reference = make_reference(classifier, images.files, told=images.told, reading=images.reading)
    pixels = torch.from_numpy(reference.pixels)
    prepared = torch.cat([classifier.prepare(part) for part in torch.split(pixels, BATCH)])
    # expand normalises one channel three ways by broadcasting
    prepared = prepared.expand(-1, _stem_channels(classifier), -1, -1)
    features = torch.cat([classifier.backbone(part) for part in torch.split(prepared, BATCH)])
    given = features if form == "head" else prepared
    with tempfile.TemporaryDirectory() as folder:
        job = {name: str(Path(folder) / f"{name}.npz") for name in ("answers",)}
        job |= {"given": str(Path(folder) / "given.npy"), "format": form, "target": str(path.resolve())}
        np.save(job["given"], given.contiguous().numpy())
        formula = _formula(classifier) if form == "head" else {}
        (answer,) = run_client([{**job, **formula, "in_chans": prepared.shape[1]}], folder)
        with np.load(job["answers"]) as arrays:
            answers = torch.from_numpy(arrays["answers"])
    logits = answers if form == "head" else classifier.head(answers)
    ours = classifier.probabilities(classifier.head(features)).numpy()
    measured = difference(ours, classifier.probabilities(logits).numpy())
    if form == "head" and list(answer["classes"]) != list(classifier.classes):
        report["problems"].append("its class names differ from the model's, or their order does")
    if measured["largest"] > FP32.from_pixels or measured["agreement"] < FP32.agreement:
        report["problems"].append(
            f"a probability differs by {measured['largest']:.1e}, limit {FP32.from_pixels:.0e}; the first class "
            f"agrees in {measured['agreement']:.1%}"
        )
    report |= {
        "unreadable": reference.unreadable,
        "opened_by": answer["opened_by"],
        "from_pixels": measured,
        "passed": not report["problems"],
    }
    return report


def _formula(classifier: Classifier) -> dict[str, str]:
    """Return the text of the function that computes the head's logits without this package."""
    function = HEADS[classifier.head_settings["name"]].logits_alone
    code = f"from collections.abc import Mapping\nfrom typing import Any\n{inspect.getsource(function)}"
    return {"code": code, "function": function.__name__}


def _stem_channels(classifier: Classifier) -> int:
    if not classifier.backbone.first_convs:  # a module of the user's without a convolution
        return len(classifier.input_spec.mean)
    conv = classifier.backbone.net.get_submodule(classifier.backbone.first_convs[0])
    return int(conv.in_channels)  # type: ignore[arg-type]  # nn.Module types attributes as Tensor
