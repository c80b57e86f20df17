"""``finetune lr-find``: find a learning rate for all stages together."""

import csv
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from finetune.commands.hydra_job import ComposingArguments, run_composed
from finetune.commands.options import numeric
from finetune.config import command_line
from finetune.config.overrides import plain_words
from finetune.config.schema import Config
from finetune.counted import counted
from finetune.distributed import is_rank_zero
from finetune.errors import UserError, did_you_mean
from finetune.plain import to_plain

if TYPE_CHECKING:
    from finetune.phases import ResolvedPhase
    from finetune.training.lr_finder import RangeTest

ABOUT = """\
Find a learning rate: the rates of all stages rise together, in constant ratios, while a few batches are trained on; then
the network is restored. Suggests a rate by two rules (valley, steepest), with the command that uses it, and writes
lr_find.csv, lr_find.json and lr_find.svg. Takes the same settings as finetune train, which you run next."""


log = logging.getLogger(__name__)

# a range test of fewer steps is called rough
_FEW_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command."""

    phase: str | None = None
    steps: int = 100
    lowest: float = 1e-7
    highest: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A learning rate that a rule suggests.

    Args:
        lr: Rate of the fastest stage.
        stages: Rate of each trainable stage.
        overrides: Overrides that set these rates.
        command: Training command with them.
    """

    lr: float
    stages: Mapping[str, float]
    overrides: tuple[str, ...]
    command: str


def run(argv: Sequence[str]) -> int:
    """Run ``finetune lr-find`` and return the exit status."""
    parser = ComposingArguments("lr-find", ABOUT)
    parser.add_argument(
        "--phase",
        default=Options.phase,
        metavar="N",
        help="of the schedule, counted from 0, or its name (the first that trains by a rate). A later phase is swept from the "
        "weights at the start: weights=PATH and head.weights=PATH can name better ones",
    )
    steps = numeric(int, least=10, why=", to give a usable curve")
    parser.add_argument("--steps", type=steps, default=Options.steps, metavar="N", help="number of steps (100)")
    parser.add_argument(
        "--lowest",
        type=numeric(float),
        default=Options.lowest,
        metavar="RATE",
        help="rate of the fastest stage at the first step (1e-7)",
    )
    parser.add_argument(
        "--highest",
        type=numeric(float),
        default=Options.highest,
        metavar="RATE",
        help="its rate at the last step, unless the loss diverges before (10)",
    )
    given, line = parser.parse(argv)
    options = Options(phase=given.phase, steps=given.steps, lowest=given.lowest, highest=given.highest)
    if not 0 < options.lowest < options.highest:
        raise UserError(
            f"--lowest {options.lowest:g} --highest {options.highest:g}: must be positive, the lowest below the highest."
        )
    return run_composed("lr-find", line, partial(task, options=options))


def choose_phase(phases: "Sequence[ResolvedPhase]", asked: str | None) -> int:
    """Return the position of a phase, given by its number or name.

    None chooses the first phase that trains by a rate. A phase that solves its head has none; with one it would train step by
    step instead.

    Raises:
        UserError: There is no such phase.
    """
    names = [phase.name for phase in phases]
    if asked is None:
        return next((number for number, phase in enumerate(phases) if not phase.solves_head), 0)
    if asked in names:
        return names.index(asked)
    if asked.isdigit() and int(asked) < len(names):
        return int(asked)
    raise UserError(
        f"--phase {asked}: no such phase. Phases: {', '.join(f'{n} ({name})' for n, name in enumerate(names))}."
        f"{did_you_mean(asked, names)}"
    )


def task(config: Config, *, options: Options) -> int:
    """Run the learning-rate search for one configuration."""
    # on one device: the loss of a batch, and so the suggestion, does not depend on the number of devices
    if not is_rank_zero():
        return 0
    config = replace(config, trainer={**config.trainer, "devices": 1, "num_nodes": 1, "strategy": "auto"})
    # the words of the command line as Hydra left them: program, command, rest
    words = sys.argv[2:]
    from finetune.build import assemble
    from finetune.build.run_dir import choose_run_dir, make_run_dir
    from finetune.build.training import loss_of, optimizer_factory, trainer_factory
    from finetune.runners.train import decide
    from finetune.terminal_log import show
    from finetune.training.quiet_lightning import quiet_lightning

    folder = choose_run_dir(replace(config, name=f"{config.name or config.schedule.name}-lr-find"))
    parts = assemble(config, show, trusted=True)
    how = decide(config, parts)
    number = choose_phase(how.phases, options.phase)
    phase = how.phases[number]
    from finetune.training.lr_finder import find_rate

    show(
        f"phase {number + 1} of {len(parts.phases)}: {phase.name} (schedule.phases.{number}), training "
        f"{', '.join(phase.train)}: {options.steps} steps of "
        f"{phase.batch_size * phase.accumulate} images, rates from {options.lowest:g} to {options.highest:g}"
    )
    with quiet_lightning():
        test = find_rate(
            classifier=parts.classifier,
            data=parts.data,
            phase=phase,
            seed=config.seed,
            make_trainer=trainer_factory(config, folder, precision=how.precision.name, trusted=True),
            make_optimizer=partial(optimizer_factory, trusted=True),
            make_loss=loss_of(config, parts.source, trusted=True),
            lowest=options.lowest,
            highest=options.highest,
            steps=options.steps,
        )
    if len(test.losses) < 3:
        raise UserError(
            f"--lowest {options.lowest:g}: the loss diverged after {len(test.losses)} steps. Start at a lower rate, or "
            "check the data: finetune plan shows what is trained."
        )
    if test.diverged:
        show(f"stopped after {len(test.losses)} steps: the loss diverges at a rate of {test.rates[-1]:.3g}")
    with make_run_dir(config, folder) as made:
        report_range_test(test, config=config, number=number, words=words, folder=made)
    return 0


def report_range_test(test: "RangeTest", *, config: Config, number: int, words: Sequence[str], folder: Path) -> None:
    """Print the suggestions, and write the table, the numbers and the chart."""
    from finetune.atomic_files import write_json, write_text
    from finetune.report.lr_find_chart import write_lr_find_chart
    from finetune.terminal_log import show
    from finetune.training.lr_finder import table

    suggestions = test.suggestions()
    phases = config.schedule.phases
    of_phases = {f"schedule.phases.{at}.lr": phase.lr for at, phase in enumerate(phases) if phase.lr is not None}
    rates = of_phases | ({} if config.schedule.lr is None else {"schedule.lr": config.schedule.lr})
    rows = table(test)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "lr_find.csv", text.getvalue())
    described = {
        name: Suggestion(
            lr=rate,
            stages=test.stage_rates(rate),
            overrides=tuple(test.overrides(rate, number)),
            command=command_with(test.overrides(rate, number), words, rates=rates),
        )
        for name, rate in suggestions.items()
    }
    write_json(
        folder / "lr_find.json",
        {
            "phase": test.phase.name,
            "fastest_stage": test.stage,
            "configured": test.phase.rates(),
            "steps": len(test.losses),
            "diverged": test.diverged,
            "seed": config.seed,
            "suggestions": {name: to_plain(suggestion) for name, suggestion in described.items()},
        },
    )
    write_lr_find_chart(
        folder / "lr_find.svg",
        rates=test.rates.tolist(),
        losses=test.losses.tolist(),
        smoothed=test.smoothed.tolist(),
        suggestions=suggestions,
        stage=test.stage,
        title=f"phase {number + 1} ({test.phase.name}) of schedule {config.schedule.name}",
    )
    for name, entry in described.items():
        show(f"{name:9} {', '.join(f'{stage} {rate:.3g}' for stage, rate in entry.stages.items())}")
    if len(test.losses) < _FEW_STEPS:
        log.warning(
            "%s give a rough curve, and its suggestion may be far off. %s",
            counted(len(test.losses), "step"),
            f"Start at a lower rate: --lowest {test.rates[0] / 100:.3g}."
            if test.diverged
            else f"--steps {Options.steps}, the default, draws it well.",
        )
    if described:
        show(f"use: {described.get('valley', next(iter(described.values()))).command}")
    else:
        show(
            "No suggestion: the loss did not fall at any learning rate. More steps (--steps 300), a larger "
            "data.batch_size, or a lower --lowest may help."
        )
    show(f"wrote: {folder / 'lr_find.svg'}, lr_find.csv and lr_find.json beside it")


def command_with(
    overrides: Sequence[str], words: Sequence[str], *, rates: Mapping[str, float] = MappingProxyType({})
) -> str:
    """Return the training command with the given overrides in place of earlier values of the same settings.

    Args:
        overrides: Settings of the suggestion.
        words: The words that were typed.
        rates: The rates of the schedule by their keys, in place of a typed ``lr``, which would scale the suggestion.

    >>> command_with(["schedule.phases.0.lr=0.01"], ["data.root='pets'", "run_dir=here", "schedule.phases.0.lr=1"])
    'finetune data.root=pets schedule.phases.0.lr=0.01'
    >>> rates = {"schedule.lr": 0.1, "schedule.phases.1.lr": 0.05}
    >>> command_with(["schedule.phases.1.lr=0.02"], ["data=digits", "lr=0.1"], rates=rates)
    'finetune data=digits schedule.lr=0.1 schedule.phases.1.lr=0.02'
    """
    if any(word.startswith("lr=") for word in words):
        settled = [f"{key}={rate:.6g}" for key, rate in rates.items()]
        words = [*(word for word in words if not word.startswith("lr=")), *settled]
    replaced = {word.partition("=")[0] for word in overrides} | {"run_dir"}
    kept = [word for word in words if word.partition("=")[0].lstrip("+") not in replaced]
    return command_line("train", [*plain_words(kept), *overrides])
