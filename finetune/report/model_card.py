"""The model card of a bundle: what users need to know before they use the model."""

from collections.abc import Sequence

from finetune.bundle_card import how_to_open
from finetune.export.formats import FORMATS
from finetune.input_spec import InputSpec
from finetune.models.classifier import Classifier
from finetune.report.confusion import confused_pairs, confusion_of, images_counted
from finetune.report.loading_snippets import how_to_load
from finetune.results import BackboneOrigin, DataFacts, Results, SplitMetrics
from finetune.terminal import markdown

_MISTAKES = 10


def model_card(classifier: Classifier, results: Results) -> str:
    """Render the model card as Markdown.

    Args:
        classifier: Trained model.
        results: Results of the run.
    """
    spec, test, counts = classifier.input_spec, results.test, results.data.counts
    backbone, figures = results.backbone, test.in_words()
    several = classifier.multi_label
    calibration = "" if results.calibration is None else results.calibration.in_words()
    unknown = "" if results.unknown is None else results.unknown.in_words()
    images = images_counted(test, len(classifier.classes))
    answers = (
        "It knows only these classes."
        if several
        else "It tells images that are unlike its training images: `known` is false, and `unknown_score` above 1."
        if classifier.unknown is not None
        else "It always answers with one of its classes, also for an image that shows none of them."
    )
    lines = [
        f"# {markdown(backbone.name)}, {len(classifier.classes)} classes",
        "",
        f"Made by `finetune`. Backbone weights at the start: `{backbone.weights}`. Schedule: "
        f"`{results.schedule}`, seed {results.seed}.",
        "",
        *(
            [
                f"These come from {markdown(backbone.place)}{_revision(backbone)}. Their licence: `{backbone.licence}`.",
                "",
            ]
            if backbone.licence is not None
            else []
        ),
        *how_to_open(classifier),
        "",
        "## Test",
        "",
        f"{figures[:1].upper()}{figures[1:]}, expected calibration error {test.ece:.4f} on {images} images.",
        *([f"Its logits are divided by a {calibration}."] if calibration else []),
        *([f"A class is predicted above {results.thresholds.in_words()}."] if results.thresholds else []),
        *([f"{unknown[:1].upper()}{unknown[1:]}."] if unknown else []),
        "",
        "| class | training images | test images | recall |",
        "|---|---|---|---|",
    ]
    for position, name in enumerate(classifier.classes):
        recall = f"{test.recall[position]:.3f}" if counts["test"][position] else "no image"
        lines.append(f"| {markdown(name)} | {counts['train'][position]} | {counts['test'][position]} | {recall} |")
    # in multi-label data no class is mistaken for another
    lines += ["", *([] if several else _confusions(classifier.classes, test))]
    lines += _other_programs(spec, results.data, multi_label=several)
    lines += [
        "## Intended use",
        "",
        "Sorting images like those it was trained on into the classes above. Test it on your own before a decision about "
        "people rests on it: finetune evaluate RUN data=DIR.",
        "",
        "## Limits",
        "",
        f"These figures hold for images like those it was trained on. {answers}",
        "",
    ]
    return "\n".join(lines)


def _revision(backbone: BackboneOrigin) -> str:
    return f", revision `{backbone.revision}`" if backbone.revision else ""


def _other_programs(spec: InputSpec, data: DataFacts, *, multi_label: bool) -> list[str]:
    """Describe how to open each export, one heading level lower than in the export's own README."""
    reading = {"high_depth": data.high_depth, "integer_range": data.integer_range, "float_range": data.float_range}
    sections = [
        f"#{how_to_load(name, spec, path=f'exports/{chosen.filename}', reading=reading, multi_label=multi_label)}"
        for name, chosen in FORMATS.items()
        if chosen.snippet
    ]
    return [
        "## Other programs",
        "",
        "`finetune export RUN --format FORMAT` writes what the code below opens.",
        "",
        *sections,
    ]


def _confusions(classes: Sequence[str], test: SplitMetrics) -> list[str]:
    """List the most frequent mistakes; with many classes all pairs would fill pages."""
    pairs, kinds = confused_pairs(confusion_of(test, len(classes)), classes, most=_MISTAKES)
    if not pairs:
        return ["No test image was put into a wrong class.", ""]
    rows = [f"| {markdown(p.true)} | {markdown(p.found)} | {p.count} |" for p in pairs]
    heading = f"The {len(rows)} most frequent of {kinds} kinds of mistakes:" if kinds > len(rows) else "Mistakes:"
    return [heading, "", "| true class | predicted | test images |", "|---|---|---|", *rows, ""]
