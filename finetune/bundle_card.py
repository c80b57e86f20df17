"""The part of a model card that says how a bundle is opened, and the card of a bundle that was saved from Python."""

from finetune.models.classifier import Classifier
from finetune.models.user_modules import user_classes
from finetune.terminal import markdown


def how_to_open(classifier: Classifier) -> list[str]:
    """Return the lines of the section "Use": the call, the user's classes that it needs, and the images that it takes."""
    spec, needed = classifier.input_spec, user_classes(classifier.describe())
    modules = ", ".join(f'"{part}": {name.rpartition(".")[2]}(...)' for part, name in needed.items())
    given = f", modules={{{modules}}}" if needed else ""
    lines = [
        "## Use",
        "",
        "```python",
        "import finetune",
        f'model = finetune.load("PATH_OF_THIS_FOLDER"{given})',
        'print(model.predict(["photo.jpg"]))   # reads files as the run did; model(images): uint8 (B, C, H, W) to logits (B, K)',
        "```",
        "",
    ]
    if needed:
        lines += ["It needs these classes, which are not part of finetune and not in this folder:", ""]
        lines += [f"- {markdown(name)} ({part})" for part, name in needed.items()]
        lines += [
            "",
            "Build a module of each with the arguments that it had in training; the weights are loaded into it.",
            "",
        ]
    lines += [
        f"Input: {spec.channels} channel(s), {spec.size[0]} x {spec.size[1]} pixels, `uint8`. The shorter side is resized "
        f"to the size over {spec.crop_pct:g} ({spec.interpolation}, {spec.crop_mode}); normalisation is inside the model.",
    ]
    if classifier.multi_label:
        lines += [
            "",
            "An image may show several classes, or none: probabilities are `logits.sigmoid()`, and a class is predicted above "
            "its threshold in `model.thresholds`.",
        ]
    return lines


def short_card(classifier: Classifier) -> str:
    """Return the Markdown of a model that was saved from Python, of which no metrics are known."""
    return "\n".join(
        [
            f"# {markdown(classifier.backbone.name)}, {len(classifier.classes)} classes",
            "",
            "Saved by `finetune.save_bundle`. It was not tested by finetune.",
            "",
            *how_to_open(classifier),
            "",
            "## Classes",
            "",
            *(f"- {markdown(name)}" for name in classifier.classes),
            "",
        ]
    )
