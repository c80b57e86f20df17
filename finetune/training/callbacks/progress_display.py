"""Show the progress of a phase: a progress bar on a terminal, elsewhere one line per epoch."""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.markup import escape

from finetune.distributed import is_rank_zero
from finetune.errors import shortened
from finetune.monitors import built_in
from finetune.terminal import printable, unguarded
from finetune.training.phase_module import PhaseModule
from finetune.training.time_left import TimeLeft, in_words

log = logging.getLogger(__name__)


def stages_in_words(train: Sequence[str], stages: Sequence[str]) -> str:
    """Return a short text that names the stages that train.

    >>> stages_in_words(("layer4", "head"), ("stem", "layer3", "layer4", "head"))
    'layer4, head'
    >>> stages_in_words(tuple("bcdef"), tuple("abcdef"))
    'b ... f'
    >>> stages_in_words(tuple("abc"), tuple("abc"))
    'all stages'
    """
    if len(train) == len(stages):
        return "all stages"
    start = stages.index(train[0])
    if len(train) > 3 and tuple(train) == tuple(stages[start : start + len(train)]):
        return f"{train[0]} ... {train[-1]}"
    return shortened(list(train))


def rates_in_words(rates: Sequence[float]) -> str:
    """Return a string with the rate, or with the lowest and the highest of several.

    >>> rates_in_words([0.001]), rates_in_words([0.0001, 0.002, 0.001])
    ('0.001', '0.0001 ... 0.002')
    """
    low, high = min(rates), max(rates)
    return f"{high:.2g}" if low == high else f"{low:.2g} ... {high:.2g}"


def current_rates(trainer: Trainer) -> str:
    """Return a string with the rates of the last step."""
    return rates_in_words([group["lr"] for group in trainer.optimizers[0].param_groups])


class PhaseProgressBar(RichProgressBar):
    """Shows the phase, its trainable stages, the rates and the time left of the schedule in Lightning's progress bar.

    Args:
        time_left: Estimate of the time left of the schedule.
    """

    def __init__(self, time_left: TimeLeft) -> None:
        super().__init__(console_kwargs={"file": unguarded(sys.stdout)})
        self._time_left = time_left

    @staticmethod
    def fits_terminal() -> bool:
        """Return whether stdout is a terminal that can redraw a line, and not that of CI, whose log keeps every line."""
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")

    def _get_train_description(self, current_epoch: int) -> str:
        module = self.trainer.lightning_module
        assert isinstance(module, PhaseModule)
        phase = module.phase
        title = f"{printable(phase.name)} ({stages_in_words(phase.train, phase.stages)})"
        # Rich could take part of a name for markup
        return f"{escape(title)} epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the rates, the last validation accuracy, and the time left of the run."""
        assert isinstance(pl_module, PhaseModule)
        shown = {"lr": current_rates(trainer)}
        if "val/acc" in trainer.callback_metrics:
            shown["val/acc"] = f"{float(trainer.callback_metrics['val/acc']):.4f}"
        left = in_words(self._time_left.at(pl_module.phase_number, share_done(trainer, pl_module)))
        return shown | ({"run": left} if left else {})


def shown_metrics(values: Iterable[str]) -> list[str]:
    """Return the two metrics of an epoch's line: accuracy, and the loss or a metric of the user's own in its place.

    More would not fit 80 columns; ``metrics.csv`` has all.

    >>> shown_metrics(["val/loss", "val/acc", "val/ece"]), shown_metrics(["val/acc", "val/kappa", "val/loss"])
    (['val/loss', 'val/acc'], ['val/kappa', 'val/acc'])
    """
    names = list(values)
    own = [name for name in names if name.startswith("val/") and name not in built_in(multi_label=True)]
    return [name for name in (*(own[:1] or ["val/loss"]), "val/acc") if name in names]


class EpochLines(Callback):
    """Logs one plain line per epoch, for log files and pipes.

    Args:
        time_left: Estimate of the time left of the schedule.
    """

    def __init__(self, time_left: TimeLeft) -> None:
        self._time_left = time_left

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure time."""
        assert isinstance(pl_module, PhaseModule)
        self._time_left.at(pl_module.phase_number, share_done(trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the line of the epoch."""
        if not is_rank_zero() or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert isinstance(pl_module, PhaseModule)
        values = trainer.callback_metrics
        shown = [f"{name} {float(values[name]):.4f}" for name in shown_metrics(values)]
        left = in_words(self._time_left.at(pl_module.phase_number, share_done(trainer, pl_module)))
        parts = [
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            *shown,
            # the highest: with both ends of the range the line would not fit 80 columns
            f"lr {max(group['lr'] for group in trainer.optimizers[0].param_groups):.2g}",
            left,
        ]
        log.info("  %s", "  ".join(part for part in parts if part))


def share_done(trainer: Trainer, module: PhaseModule) -> float:
    """Return the share of the phase's optimizer steps that are done, from 0 to 1."""
    return min(trainer.global_step / max(module.total_steps, 1), 1.0)
