"""A trained head alone, and a trained backbone alone, as safetensors files."""

from pathlib import Path

from finetune.models.classifier import Classifier
from finetune.models.weights import FORMAT_VERSION, save_head, save_tensors, state_hash


def export_head(classifier: Classifier, path: Path) -> None:
    """The head, tied to the hash of its backbone's weights and to its class list."""
    save_head(path, head=classifier.head, backbone_hash=state_hash(classifier.backbone), classes=classifier.classes)


def export_backbone(classifier: Classifier, path: Path) -> None:
    """The backbone's state dict under the names of the library that it comes from, with its description beside it."""
    metadata = {
        "format": FORMAT_VERSION,
        "kind": "backbone",
        "backbone": classifier.backbone.describe(),
        "backbone_hash": state_hash(classifier.backbone),
    }
    save_tensors(path, classifier.backbone.net.state_dict(), metadata=metadata)
