"""``finetune predict``: classify images with a trained run."""

from collections.abc import Sequence

from finetune.commands.arguments import Arguments

ABOUT = """\
Classify images: files, or folders with all images below them. Unreadable images become rows that say why."""


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = Arguments("predict", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("images", metavar="IMAGES", nargs="+")
    parser.add_argument("--output", required=True, metavar="FILE", help="predictions.csv or predictions.jsonl")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    given = parser.parse_args(list(argv))
    if given.batch_size < 1:
        parser.error(f"--batch-size {given.batch_size}: must be at least 1")

    from finetune.bundle import find_bundle

    find_bundle(given.run)  # a wrong path is answered before torch builds a network

    from finetune.bundle import load_bundle
    from finetune.inference.predict import find_images, predict, write_predictions

    classifier = load_bundle(given.run)
    rows, errors = write_predictions(
        predict(classifier, find_images(given.images), batch_size=given.batch_size), given.output
    )
    print(f"{rows} images, {errors} of them unreadable: {given.output}" if errors else f"{rows} images: {given.output}")
    return 0
