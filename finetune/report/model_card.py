"""The model card of a bundle: what a stranger needs to know before using it."""

from typing import Any

from finetune.metrics import in_words
from finetune.models.classifier import Classifier


def _escaped(text: str) -> str:
    """A name inside a Markdown table or list."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-!|" else c for c in text.replace("\n", " "))


def model_card(classifier: Classifier, results: dict[str, Any]) -> str:
    """Markdown.

    Args:
        classifier: The trained network.
        results: As in ``results.json``.
    """
    spec, test, counts = classifier.input_spec, results["test"], results["data"]["counts"]
    backbone, figures = results["backbone"], in_words(test)
    several = classifier.multi_label
    # of several labels there is one matrix a class, each with every image
    images = sum(map(sum, test["confusion"][0] if several else test["confusion"]))
    answers = (
        "It knows no other classes than these."
        if several
        else "It always answers with one of its classes, also for an image that shows none of them."
    )
    lines = [
        f"# {_escaped(backbone['name'])}, {len(classifier.classes)} classes",
        "",
        f"Made by `finetune`. Backbone weights at the start: `{backbone['weights']}`. Schedule: "
        f"`{results['schedule']}`, seed {results['seed']}.",
        "",
        "## Use",
        "",
        "```python",
        "import finetune",
        'model = finetune.load("PATH_OF_THIS_FOLDER")   # uint8 images (B, C, H, W) to logits (B, K)',
        "```",
        "",
        f"Input: {spec.channels} channel(s), {spec.size[0]} x {spec.size[1]} pixels, `uint8`. The shorter side is resized "
        f"to the size over {spec.crop_pct:g} ({spec.interpolation}, {spec.crop_mode}); normalisation is inside the model.",
        *(["", "An image may show several classes, or none: probabilities are `logits.sigmoid()`."] if several else []),
        "",
        "## Test",
        "",
        f"{figures[:1].upper()}{figures[1:]}, expected calibration error {test['ece']:.4f} on {images} images.",
        "",
        "| class | training images | test images | recall |",
        "|---|---|---|---|",
    ]
    for position, name in enumerate(classifier.classes):
        recall = f"{test['recall'][position]:.3f}" if counts["test"][position] else "no image"
        lines.append(f"| {_escaped(name)} | {counts['train'][position]} | {counts['test'][position]} | {recall} |")
    lines += [
        "",
        "## Limits",
        "",
        f"These figures hold for images like those it was trained on. {answers}",
        "",
    ]
    return "\n".join(lines)
