"""``finetune evaluate``: test a trained run on its own test split or on other data."""

from collections.abc import Sequence

from finetune.commands.options import TRUST, Arguments, home_path
from finetune.config import check_overrides
from finetune.config.overrides import TypedLine
from finetune.counted import counted
from finetune.errors import RunError
from finetune.runners.evaluate import evaluate_run
from finetune.wrapping import aligned, wrapped

ABOUT = """\
Test a trained run. Without key=value it is tested on its own test split.
Other data: its folder or table, or data=... key=value; classes are aligned by name. If it has its own splits, its test split is
used, otherwise all of it. With --at-least the exit status is 1 if a metric is below its floor, for pipelines."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune evaluate`` and return the exit status."""
    parser = Arguments("evaluate", ABOUT)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "overrides", metavar="DIR | key=value", nargs="*", help="other data, or a change of the run's own"
    )
    parser.add_argument(
        "--split",
        choices=["train", "val", "test", "all"],
        help="default: test; all, for data without splits",
    )
    parser.add_argument("--output", type=home_path, metavar="FILE", help="write the metrics as JSON")
    parser.add_argument(
        "--at-least",
        nargs="+",
        action="extend",
        default=[],
        metavar="METRIC=NUMBER",
        help="floors: acc=0.95 f1=0.9; exit status 1 below one of them",
    )
    parser.add_argument("--trust", action="store_true", help=TRUST)
    given = parser.read(argv)
    given.overrides = check_overrides(given.overrides, line=TypedLine("evaluate", (given.run,)))

    from finetune.atomic_files import write_json
    from finetune.inference.floors import read_floors, shortfalls

    floors = read_floors(given.at_least)
    tested, classifier, split = evaluate_run(given.run, given.overrides, split=given.split, trust=given.trust)
    metrics = tested.metrics
    print(f"{counted(tested.images, 'image')} ({split}): {metrics.in_words()}")
    print(f"calibration error: {metrics.ece:.4f}")
    recalls = [
        [name, f"recall {'-' if name in tested.missing_classes else f'{recall:.4f}'}"]
        for name, recall in zip(classifier.classes, metrics.recall, strict=True)
    ]
    print("\n".join(aligned(recalls, left=2, indent=2)))
    if tested.missing_classes:
        print(
            wrapped(
                f"classes without an image: {', '.join(tested.missing_classes)}. Each that was predicted all the same counts as "
                "0 in the macro F1, which is a mean over the classes"
            )
        )
    if tested.known is not None:
        print(f"like the training images: {tested.known:.1%} of the images (unknown_score at most 1)")
    if given.output:
        write_json(given.output, tested.to_plain())
    if below := shortfalls(floors, metrics.scalars()):
        raise RunError(f"--at-least: not reached on {counted(tested.images, 'image')} ({split}). {'; '.join(below)}.")
    return 0
