"""``finetune ladder``: which strategy is right for this data, measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.hydra_job import help_text, parse_line
from finetune.errors import UserError, did_you_mean

ABOUT = """\
Train the same network on the same data in every way, from guessing the largest class to training from scratch, over several
seeds and at an equal budget of passes over the images; say which way to take, and write a table, a picture and a learning
curve. Features of the frozen network are computed once for all. Takes the same key=value as finetune train (but for
schedule and experiment, which the rungs set), and

  --seeds N           of each rung; a seed is one split and one initialisation (default: 3)
  --epochs N          passes over the training images, of every rung that trains (default: 8)
  --rungs A,B,...     only these (default: all)
  --output DIR        a new folder, or one that an interrupted ladder left, which is gone on with (default: runs/ladder-DATA)"""

# cheapest first; what each rung adds to the command line, with {E}, {A}, {B}, {C} for epochs
RUNGS: dict[str, tuple[str, ...] | None] = {
    "majority": None,
    "knn": None,
    "probe": ("schedule=probe",),
    "frozen": ("schedule=frozen", "schedule.phases.0.epochs={E}"),
    "norm_only": ("schedule=norm_only", "schedule.phases.0.epochs={E}"),
    "last": (
        "schedule=frozen",
        "schedule.name=last",
        "schedule.phases.0.name=last",
        "schedule.phases.0.train=[last,head]",
        "schedule.phases.0.epochs={E}",
        "schedule.phases.0.layer_decay=0.5",
    ),
    "gradual": (
        "schedule=gradual",
        "schedule.phases.0.epochs={A}",
        "schedule.phases.1.epochs={B}",
        "schedule.phases.2.epochs={C}",
    ),
    "lp_ft": ("schedule=lp_ft", "schedule.phases.1.epochs={E}"),
    "full": ("schedule=full", "schedule.phases.0.epochs={E}"),
    "scratch": (
        "schedule=full",
        "schedule.name=scratch",
        "schedule.phases.0.epochs={E}",
        "schedule.phases.0.layer_decay=1.0",
        "schedule.lr=1e-3",
        "schedule.phases.0.lr=1e-3",
        "schedule.batch_norm=train",
        "backbone.weights=none",
    ),
}
# the rungs set these
_OWN = ("schedule", "experiment", "seed", "run_dir", "name")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of this command alone."""

    seeds: int = 3
    epochs: int = 8
    rungs: tuple[str, ...] = tuple(RUNGS)
    output: str | None = None


def run(argv: Sequence[str]) -> int:
    """The command."""
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
    from finetune.commands.climb import climb

    climb(line.overrides, options)
    return 0


def parse_options(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """Options of this command, and the other words.

    Raises:
        UserError: A value is missing, is no number, or names no rung.

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
                if name not in RUNGS:
                    raise UserError(
                        f"--rungs {name}: no such rung. Rungs: {', '.join(RUNGS)}.{did_you_mean(name, RUNGS)}"
                    )
            given["rungs"] = tuple(name for name in RUNGS if name in chosen)
        elif option == "--output":
            given["output"] = value
        elif not value.isdigit() or int(value) < 1:
            raise UserError(f"{option} {value}: must be a whole number from 1 up.")
        else:
            given[option.removeprefix("--")] = int(value)
    return Options(**given), rest


def words_of(rung: str, *, epochs: int) -> list[str]:
    """What a rung adds to the command line.

    >>> words_of("gradual", epochs=8)
    ['schedule=gradual', 'schedule.phases.0.epochs=2', 'schedule.phases.1.epochs=2', 'schedule.phases.2.epochs=4']
    """
    template = RUNGS[rung]
    assert template is not None
    first = max(1, epochs // 4)
    shares = {"E": epochs, "A": first, "B": first, "C": max(1, epochs - 2 * first)}
    return [word.format(**shares) if "{" in word else word for word in template]


def output_folder(options: Options, source: str) -> Path:
    """Where the ladder is written."""
    return Path(options.output or f"runs/ladder-{source}").expanduser()
