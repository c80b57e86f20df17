"""``finetune ladder``: measure which training strategy suits the data."""

import argparse
from collections.abc import Sequence

from finetune.commands.hydra_job import ComposingArguments
from finetune.commands.options import numeric
from finetune.config import check_overrides
from finetune.config.overrides import TypedLine
from finetune.errors import UserError, did_you_mean
from finetune.ladder.networks import networks_chosen
from finetune.ladder.strategies import PROBE_ALONE, STRATEGIES, LadderOptions, refuse_own_settings

ABOUT = """\
Train the same network on the same data in every way, from guessing the largest class to training from scratch, over several
seeds and at an equal budget of passes over the images; recommend one, and write a table, a picture and a learning
curve. Features of the frozen network are computed only once. With --backbones, compare pretrained networks instead, each by a
head solved on its frozen features, and train the best of them by --rungs. Takes the same key=value as finetune train, except
schedule, experiment, seed, epochs, run_dir and name, which it gives each run itself."""

# keys that the ladder sets for each strategy


def run(argv: Sequence[str]) -> int:
    """Run ``finetune ladder`` and return the exit status."""
    parser = _Arguments("ladder", ABOUT, sweeps=False)
    whole = numeric(int, least=1)
    parser.add_argument(
        "--seeds", type=whole, metavar="N", help="of each rung; a seed is one split and one initialisation (3)"
    )
    parser.add_argument(
        "--epochs", type=whole, metavar="N", help="passes over the training images, of every rung that trains (8)"
    )
    parser.add_argument("--rungs", type=_rungs, metavar="A,B,...", help=f"only these: {', '.join(STRATEGIES)} (all)")
    parser.add_argument(
        "--backbones",
        metavar="A,B,...",
        help="compare these networks: NAME or NAME=WEIGHTS, as resnet18=embedded; auto: those whose weights are here",
    )
    parser.add_argument(
        "--finalists", type=whole, metavar="N", help="networks that --rungs train, the best on validation (2)"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="a new folder, or the folder of an interrupted ladder, which is continued (runs/ladder-DATA)",
    )
    given, line = parser.parse(argv)
    chosen = {name: getattr(given, name) for name in ("seeds", "epochs", "rungs", "output", "finalists")}
    overrides = check_overrides(line.overrides, line=TypedLine("ladder"))
    refuse_own_settings(overrides)
    if given.backbones is not None:
        chosen["networks"] = networks_chosen(given.backbones.split(","), given.rungs, overrides)
        chosen["rungs"] = given.rungs or PROBE_ALONE
    elif given.finalists is not None:
        raise UserError(
            "--finalists: belongs to --backbones, which compares networks. Leave it out, or name the networks."
        )
    from finetune.ladder.ladder import run_ladder

    run_ladder(overrides, LadderOptions(**{name: value for name, value in chosen.items() if value is not None}))
    return 0


class _Arguments(ComposingArguments):
    def line_for(self, word: str, argv: Sequence[str]) -> str | None:
        """Answer the options of other commands that take a configuration."""
        if word in ("-m", "--multirun", "--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--info"):
            return f"{word}: finetune ladder runs one ladder. Its options: --seeds, --epochs, --rungs, --backbones, --output."
        return super().line_for(word, argv)


def _rungs(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    for name in chosen:
        if name not in STRATEGIES:
            raise argparse.ArgumentTypeError(
                f"{name}: no such rung. Rungs: {', '.join(STRATEGIES)}.{did_you_mean(name, STRATEGIES)}"
            )
    return tuple(name for name in STRATEGIES if name in chosen)
