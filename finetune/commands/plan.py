"""``finetune plan``: what a training would do, without training."""

from collections.abc import Sequence

from finetune.commands.composing import run_composed
from finetune.config_schema import Config

ABOUT = """\
Show the phases: for each stage whether it trains, at which rate and with how many parameters; steps and images.
Takes the same key=value as finetune train. Nothing is trained and nothing is written."""


def run(argv: Sequence[str]) -> int:
    """The command."""
    return run_composed("plan", argv, task, about=ABOUT)


def task(config: Config) -> int:
    """Print the plan of one configuration."""
    from finetune.commands.assemble import assemble, imbalance
    from finetune.commands.train import decide

    parts = assemble(config, print)

    from finetune.training.plan import build_plan, plan_table

    precision, caches = decide(config, parts)
    index = parts.source.index
    images = ", ".join(f"{n} {split}" for split, n in index.images().items())
    print(f"data: {len(index.classes)} classes; images: {images}; loader processes: {parts.data.num_workers}")
    spec = parts.classifier.input_spec
    print(f"input: {spec.channels} x {spec.size[0]} x {spec.size[1]}, adapt {parts.classifier.adapt}")
    print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in imbalance(config).items()))
    print(f"precision: {precision.name} ({precision.why})")
    print()
    print(plan_table(build_plan(parts.classifier, parts.phases, parts.data, caches=caches)))
    return 0
