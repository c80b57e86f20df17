"""``finetune ladder``: measure which training strategy suits the data."""

from collections.abc import Sequence
from typing import Any

from finetune.commands.hydra_job import help_text, parse_line
from finetune.errors import UserError, did_you_mean
from finetune.ladder.strategies import STRATEGIES, LadderOptions

ABOUT = """\
Train the same network on the same data in every way, from guessing the largest class to training from scratch, over several
seeds and at an equal budget of passes over the images; recommend one, and write a table, a picture and a learning
curve. Features of the frozen network are computed only once. Takes the same key=value as finetune train (except
schedule and experiment, which the rungs set), and

  --seeds N           of each rung; a seed is one split and one initialisation (default: 3)
  --epochs N          passes over the training images, of every rung that trains (default: 8)
  --rungs A,B,...     only these (default: all)
  --output DIR        a new folder, or the folder of an interrupted ladder, which is continued (default: runs/ladder-DATA)"""

# keys that the ladder sets for each strategy
_OWN = ("schedule", "experiment", "seed", "run_dir", "name")


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    options, rest = parse_options(argv)
    line = parse_line("ladder", rest)
    if line.wants_help:
        print(help_text("ladder", ABOUT, line.config_dirs))
        return 0
    if line.options:
        raise UserError(
            f"{line.options[0]}: finetune ladder runs one ladder. Its options: --seeds, --epochs, --rungs, --output."
        )
    for word in line.overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key in _OWN:
            raise UserError(f"{word}: the ladder sets {key} itself, rung by rung.")
    from finetune.ladder.ladder import run_ladder

    run_ladder(line.overrides, options)
    return 0


def parse_options(argv: Sequence[str]) -> tuple[LadderOptions, list[str]]:
    """Return the options of this command, and the other words.

    Raises:
        UserError: A value is missing, is not a number, or names no strategy.

    >>> options, rest = parse_options(["data=digits", "--seeds", "2", "--rungs=full,frozen"])
    >>> options.seeds, options.rungs, rest
    (2, ('frozen', 'full'), ['data=digits'])
    """
    given: dict[str, Any] = {}
    rest, words = [], list(argv)
    while words:
        word = words.pop(0)
        option, joined, value = word.partition("=")
        if option not in ("--seeds", "--epochs", "--rungs", "--output"):
            rest.append(word)
            continue
        if not joined and not words:
            raise UserError(f"{option}: needs a value.")
        value = value if joined else words.pop(0)
        if option == "--rungs":
            chosen = value.split(",")
            for name in chosen:
                if name not in STRATEGIES:
                    raise UserError(
                        f"--rungs {name}: no such rung. Rungs: {', '.join(STRATEGIES)}.{did_you_mean(name, STRATEGIES)}"
                    )
            given["rungs"] = tuple(name for name in STRATEGIES if name in chosen)
        elif option == "--output":
            given["output"] = value
        elif not value.isdigit() or int(value) < 1:
            raise UserError(f"{option} {value}: must be a positive whole number.")
        else:
            given[option.removeprefix("--")] = int(value)
    return LadderOptions(**given), rest
