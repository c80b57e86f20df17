"""A small bundle for tests: the network of tests.export.trained, saved as a run would save it."""

from pathlib import Path

from finetune.bundle import save_bundle
from finetune.models.classifier import Classifier
from tests.export.trained import settled_classifier


def small_bundle(folder: Path, classifier: Classifier | None = None, **settings: object) -> Path:
    """A bundle of the classifier given, or of a tiny one."""
    settings = {"name": "resnet10t", **settings}
    model = classifier or settled_classifier(**settings)  # type: ignore[arg-type]
    return save_bundle(model, folder, card="# A model\n")
