"""A trained head alone, and a trained backbone alone, as safetensors files."""

from pathlib import Path

from finetune.models.classifier import Classifier
from finetune.models.weights import save_backbone, save_head, state_hash


def export_head(classifier: Classifier, path: Path) -> None:
    """The head, tied to the hash of its backbone's weights and to its class list."""
    save_head(
        path,
        head=classifier.head,
        backbone_hash=state_hash(classifier.backbone),
        classes=classifier.classes,
        multi_label=classifier.multi_label,
    )


def export_backbone(classifier: Classifier, path: Path) -> None:
    """The backbone's state dict under the names of the library that it comes from, with its description beside it."""
    save_backbone(path, backbone=classifier.backbone, size=classifier.input_spec.size)
