"""Export only the trained head or only the trained backbone as a safetensors file, checked before it is put in place.

Plain PyTorch (for a backbone, the library that its network comes from) opens the file in a fresh process that cannot import
this package, and does its half of the work on real images; the probabilities must equal those of the whole model.
"""

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.export.client import ClientJob
from finetune.export.formats.kind import ExportFormat
from finetune.export.images import CheckImages
from finetune.export.parity import BATCH, FP32, difference, make_reference, run_client
from finetune.export.parity_report import ParityReport
from finetune.models.classifier import Classifier
from finetune.models.heads import HEADS
from finetune.models.pools import TIMM_POOLS
from finetune.models.sources import source_module
from finetune.models.user_modules import user_classes
from finetune.models.weights import hash_of_backbone, save_backbone, save_head


def export_head(classifier: Classifier, path: Path) -> None:
    """Write the head with its class names and the hash of its backbone's weights."""
    save_head(
        path,
        head=classifier.head,
        settings=classifier.head_settings,
        backbone_hash=hash_of_backbone(classifier.backbone),
        classes=classifier.classes,
        multi_label=classifier.multi_label,
    )


def export_backbone(classifier: Classifier, path: Path) -> None:
    """Write the backbone's state dict under its library's own tensor names, with a description beside it."""
    save_backbone(path, backbone=classifier.backbone, size=classifier.input_spec.size)


@torch.inference_mode()
def check_part(
    classifier: Classifier, export_format: ExportFormat, path: Path, images: CheckImages, *, folder: Path
) -> ParityReport:
    """Report the largest difference of a probability if the part's client does its half of the work.

    Args:
        classifier: The trained model.
        export_format: Format of the part.
        path: The export.
        images: Images to compare on.
        folder: Folder for the files that pass between the processes.
    """
    part = export_format.part
    assert part is not None
    own = user_classes(classifier.describe())
    function = None if part in own else _function_alone(classifier, part)
    if function is None:
        alone = own.get(part, "finetune")
        remark = f"only {alone} can build its network, so no other library can open it: not compared"
        return ParityReport(
            format=export_format.name,
            precision="fp32",
            opened_by="none",
            images=images.origin,
            unreadable=0,
            passed=True,
            remarks=(remark,),
        )
    reference = make_reference(classifier, images.files, origin=images.origin, decode_options=images.decode_options)
    pixels = torch.from_numpy(reference.pixels)
    prepared = torch.cat([classifier.prepare(batch) for batch in torch.split(pixels, BATCH)])
    # expand normalises one channel three ways by broadcasting
    prepared = prepared.expand(-1, _stem_channels(classifier), -1, -1)
    features = torch.cat([classifier.backbone(batch) for batch in torch.split(prepared, BATCH)])
    given = features if part == "head" else prepared
    with tempfile.TemporaryDirectory(dir=folder) as passed:
        job: ClientJob = {
            "target": str(path.resolve()),
            "given": str(Path(passed) / "given.npy"),
            "in_chans": prepared.shape[1],
            "code": inspect.getsource(function),
            "function": function.__name__,
            "answers": str(Path(passed) / "answers.npz"),
        }
        np.save(job["given"], given.contiguous().numpy())
        (opened,) = run_client([job], [export_format], passed)
        with np.load(job["answers"]) as arrays:
            answers = torch.from_numpy(arrays["answers"])
    logits = answers if part == "head" else classifier.head(answers)
    ours = classifier.probabilities(classifier.head(features)).numpy()
    measured = difference(replace(reference, shares=ours), classifier.probabilities(logits).numpy())
    problems = []
    if part == "head" and list(opened["classes"]) != list(classifier.classes):
        problems.append("its class names differ from the model's, or their order does")
    if measured.largest > FP32.from_pixels or measured.agreement < FP32.agreement:
        problems.append(
            f"a probability differs by {measured.largest:.1e}, limit {FP32.from_pixels:.0e}; the answers agree in "
            f"{measured.agreement:.1%}"
        )
    return ParityReport(
        format=export_format.name,
        precision="fp32",
        opened_by=opened["opened_by"],
        images=images.origin,
        unreadable=reference.unreadable,
        from_pixels=measured,
        passed=not problems,
        problems=tuple(problems),
    )


def _function_alone(classifier: Classifier, part: str) -> Callable[..., Any] | None:
    """Return the function that does a part's half of the work with plain libraries; None if there is none."""
    if part == "head":
        return HEADS[str(classifier.head_settings["name"])].logits_alone
    if classifier.backbone.pool not in (None, *TIMM_POOLS):
        return None
    alone: Callable[..., Any] | None = source_module(classifier.backbone.source).network_alone
    return alone


def _stem_channels(classifier: Classifier) -> int:
    if not classifier.backbone.first_convs:  # a user-supplied module without a convolution
        return len(classifier.input_spec.mean)
    conv = classifier.backbone.net.get_submodule(classifier.backbone.first_convs[0])
    return int(conv.in_channels)  # type: ignore[arg-type]  # nn.Module types attributes as Tensor
