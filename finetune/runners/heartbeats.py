"""The heartbeats of a run from its very start: before images are listed and weights loaded, which may take one process long."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.build.training import timeout_s, trainer_factory
from finetune.config.schema import Config
from finetune.distributed import started_together

if TYPE_CHECKING:
    from finetune.training.heartbeats import Heartbeats


@contextmanager
def beating(
    config: Config, run_dir: Path, *, trusted: bool, begun: "Heartbeats | None" = None
) -> "Iterator[Heartbeats | None]":
    """Tell the processes of other machines, while the block runs, that this one lives.

    Args:
        config: Configuration of the run.
        run_dir: Run folder.
        trusted: Whether the user typed the configuration; if not, it may name only listed classes.
        begun: Heartbeats that have begun, which then go on.

    Yields:
        The heartbeats; None where one process starts all others, which watch each other.

    Raises:
        UserError: An argument of the Trainer is wrong.
    """
    if begun is not None or not (started_together() or config.trainer.get("num_nodes", 1) != 1):
        yield begun
        return
    from finetune.training.heartbeats import heartbeats_of
    from finetune.training.quiet_lightning import QUIET_TRAINER, quiet_lightning

    make = trainer_factory(config, run_dir, precision="32-true", trusted=trusted)
    with quiet_lightning():
        trainer = make(default_root_dir=str(run_dir), use_distributed_sampler=False, **QUIET_TRAINER)
    heartbeats = heartbeats_of(trainer, timeout_s=timeout_s(config))
    if heartbeats is None:
        yield None
        return
    heartbeats.start()
    well = False
    try:
        yield heartbeats
        well = True
    finally:
        heartbeats.stop(well=well)
