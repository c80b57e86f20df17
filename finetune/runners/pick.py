"""Choose what to label next for a trained run: its own images are those with labels."""

import logging
from collections.abc import Iterable
from pathlib import Path

from finetune.errors import UserError
from finetune.inference.pick import Labelled, Picked, pick
from finetune.inference.torch_engine import TorchEngine
from finetune.run_names import CONFIG
from finetune.runners.run_data import data_config, read_as_trained

log = logging.getLogger(__name__)


def pick_for_run(
    run: str, engine: TorchEngine, paths: Iterable[str], count: int, *, batch_size: int, seed: int
) -> Picked:
    """Choose images to label by :func:`finetune.inference.pick.pick`, and log what stands in the way.

    Args:
        run: Run folder, or a bundle, which has no images of its own.
        engine: Its network.
        paths: Image files.
        count: Number of images to choose.
        batch_size: Images in one forward pass.
        seed: Seed of the choice.
    """
    picked = pick(engine, paths, count, labelled=_labelled(run, engine), batch_size=batch_size, seed=seed)
    for path, reason in picked.unreadable[:10]:
        log.warning("unreadable: %s: %s", path, reason)
    return picked


def _labelled(run: str, engine: TorchEngine) -> Labelled | None:
    """Return the run's own images, read as in training; None where there are none, or they cannot be found, which is logged."""
    if not (Path(run).expanduser() / CONFIG).is_file():
        return None
    from finetune.build.data import build_source

    config = data_config(run, [])
    config.input.channels = engine.classifier.input_spec.channels
    read_as_trained(config, [], engine.options)
    try:
        source = build_source(config, use="audit")
    except UserError as error:
        log.warning("The run's own images cannot be read, so images are chosen as if none had labels: %s", error)
        return None
    return Labelled(source=source)
