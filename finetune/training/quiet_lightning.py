"""Silences what Lightning prints and writes by itself."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetune.distributed import is_rank_zero
from finetune.terminal import escape

# arguments of a Trainer that shows and writes nothing
QUIET_TRAINER: Mapping[str, bool] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _show_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    """Print a warning as one line without its source location, and only once across processes."""
    if is_rank_zero():
        print(escape(f"warning: {message}"), file=sys.stderr, flush=True)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's own output, and its warnings about behaviour that is intended here."""
    # its import sets the levels of its loggers
    import lightning.pytorch  # noqa: F401

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        for message in (
            # frozen stages are in evaluation mode on purpose
            r"Found \d+ module\(s\) in eval mode",
            # the number of workers is chosen from the cores and the data, and shown in the plan
            r".*does not have many workers",
            r"Consider setting `persistent_workers=True`",
            # the evaluation data set is a torchvision view of rows in a fixed order
            r".*Your `(val|test|predict)_dataloader`'s sampler has shuffling enabled",
            # each phase has its own folder in the run, which is not empty when the run is resumed
            r"Checkpoint directory .* exists and is not empty",
            # a position inside an epoch is restored exactly by the keyed sampler
            r"You're resuming from a checkpoint that ended before the epoch ended",
            r"The `srun` command is available",
            # values are computed over all processes before they are logged
            r"It is recommended to use `self.log\(.*sync_dist=True",
            # torch's own deprecation, inside Lightning 2.6
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
