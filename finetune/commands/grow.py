"""``finetune grow``: teach a trained run new classes."""

from collections.abc import Sequence

from finetune.commands.options import Arguments, home_path
from finetune.commands.train import task as train
from finetune.config import check_overrides
from finetune.config.overrides import TypedLine

ABOUT = """\
Train on from a finished run with new classes. The classes of the run come first, in their order; the network and the head's rows
of these classes start as the run left them, the rows of new classes from the mean features of their images (weight imprinting).
The data holds the new classes and, to rehearse them, the old ones: without images of the old ones they are forgotten. Every image
of the run keeps its split. The schedule is the default one, or what key=value says; a head that starts from given weights is
trained step by step. At the end, old and new classes are tested side by side. The result is a run as any other."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune grow`` and return the exit status."""
    parser = Arguments("grow", ABOUT, ending="RUN is the folder of a finished run.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("overrides", metavar="DIR | key=value", nargs="+", help="data, and settings of the new run")
    parser.add_argument(
        "--rename",
        type=home_path,
        metavar="TABLE",
        help="new names of classes, a table with the columns old and new; several of one new name are merged, and the rows of "
        "the head averaged",
    )
    given = parser.read(argv)
    overrides = check_overrides(given.overrides, line=TypedLine("grow", (given.run,)))

    from finetune.bundle import find_bundle

    find_bundle(given.run)  # reports a wrong path before the data is looked at

    from finetune.runners.grow import grown_config

    return train(grown_config(given.run, overrides, rename=given.rename))
