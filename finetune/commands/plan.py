"""``finetune plan``: show what a training would do, without training."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.commands.hydra_job import ComposingArguments, run_composed
from finetune.config.schema import Config
from finetune.wrapping import wrapped

if TYPE_CHECKING:
    from finetune.data.image_source import Source
    from finetune.input_spec import InputSpec

log = logging.getLogger(__name__)

# smallest share of an image's longer side, before input.crop_pct, of which no line is printed
_SAME_SHAPE = 0.8

ABOUT = """\
Show the phases: for each stage whether it trains, at which rate and with how many parameters; steps and images; whether it
trains on cached activations; and about how long it will take, from a calibration of a few seconds.
Takes the same key=value as finetune train. Nothing is trained and nothing is written."""


def run(argv: Sequence[str]) -> int:
    """Run ``finetune plan`` and return the exit status."""
    return run_composed("plan", ComposingArguments("plan", ABOUT).parse(argv)[1], task)


def task(config: Config) -> int:
    """Print the plan of one configuration."""
    from finetune.build import assemble
    from finetune.build.classifier import weights_origin
    from finetune.build.training import imbalance

    parts = assemble(config, _say, trusted=True)

    from finetune.plain import to_plain
    from finetune.runners.plan import plan_run
    from finetune.training.plan import duration, plan_table, repeated_heads

    index = parts.source.index
    began = time.monotonic()
    plan, precision = plan_run(config, parts)
    calibration = f"calibrated in {time.monotonic() - began:.1f} s"
    images = ", ".join(f"{n} {split}" for split, n in index.split_sizes().items())
    _say(f"data: {len(index.classes)} classes; images: {images}; loader processes: {parts.data.num_workers}")
    spec, backbone = parts.classifier.input_spec, parts.classifier.backbone
    if config.backbone.weights != "none":
        _say(f"origin of the weights: {weights_origin(config).in_words()}")
    _say(f"input: {spec.channels} x {spec.size[0]} x {spec.size[1]}, adapt {parts.classifier.adapt}")
    if backbone.pool is not None:
        _say(f"features: {backbone.num_features} by backbone.pool={backbone.pool}")
    if line := cut_off(spec, parts.source):
        _say(line)
    _say(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in to_plain(imbalance(config)).items()))
    _say(f"precision: {precision.name} ({precision.why})")
    seconds = sum(phase.time.seconds for phase in plan if phase.time is not None)
    _say(f"time: about {duration(seconds)} in all, from an empty cache ({calibration})")
    print()
    print(plan_table(plan))
    for line in repeated_heads([phase.settings for phase in plan]):
        log.warning("%s", line)
    return 0


def _say(line: str) -> None:
    print(wrapped(line), flush=True)


def cut_off(spec: "InputSpec", source: "Source") -> str:
    """Return a line on what the centre crop leaves out of images of another shape than the input's; empty if that is little."""
    import numpy as np

    from finetune.data.scan import upright_sizes

    if source.facts is None or spec.crop_mode != "center":
        return ""
    table = source.facts.table[source.facts.table["problem"] == 0]
    widths, heights = (sides.astype(float) for sides in upright_sizes(table))
    if not len(table):
        return ""
    shape = widths / heights / (spec.size[1] / spec.size[0])
    kept = float(np.median(np.minimum(shape, 1 / shape)))
    if kept > _SAME_SHAPE:
        return ""
    side = "width" if np.median(shape) > 1 else "height"
    size = f"{np.median(widths):.0f} x {np.median(heights):.0f}"
    return (
        f"crop: an image of {size} (the median) is not of the input's shape: the middle {kept * spec.crop_pct:.0%} of its {side} "
        "is seen, the ends are cut off. input.crop_mode=squash shows all of it, distorted"
    )
