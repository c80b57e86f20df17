"""The objects that the phases of a run share, and the Trainers in which they run."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from torch import nn
from torchmetrics import Metric

from finetune.activation_cache.cache import ActivationCache
from finetune.activation_cache.policy import CachePolicy
from finetune.data.datamodule import ImageDataModule
from finetune.models.classifier import Classifier
from finetune.phases import ResolvedPhase
from finetune.results import RunFacts
from finetune.resume_command import resume_command
from finetune.run_folder import PhaseFolder, RunFolder
from finetune.training.callbacks.checkpoints import AtomicCheckpointIO, PhaseCheckpoints
from finetune.training.callbacks.progress_display import EpochLines, PhaseProgressBar
from finetune.training.heartbeats import Heartbeats
from finetune.training.interruption import Interruption, disable_lightning_signal_handlers
from finetune.training.metrics_csv import MetricsCsv
from finetune.training.param_groups import OptimizerFactory
from finetune.training.quiet_lightning import QUIET_TRAINER
from finetune.training.rank_monitor import RankMonitor
from finetune.training.time_left import TimeLeft
from finetune.training.user_callbacks import UserCallbacks

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The values that every phase of a run reads.

    Args:
        seed: Key of all randomness.
        facts: Decisions made before training, for the results.
        monitor: Metric that decides which epoch is best.
        checkpoint_every: Optimizer steps between checkpoints inside an epoch; None writes them only at the ends of epochs.
        cache_limit_bytes: Limit of the whole activation cache, in bytes.
        compiled: Whether ``torch.compile`` compiles the trainable part.
        calibrate: Whether a temperature is fitted on the validation images at the end.
        fits_thresholds: Whether decision thresholds are; only for several labels.
        accept_known: Share of the validation images that count as known; None fits no score of unknown images.
    """

    seed: int
    facts: RunFacts
    monitor: str = "val/acc"
    checkpoint_every: int | None = None
    cache_limit_bytes: int = 20 * 10**9
    compiled: bool = False
    calibrate: bool = True
    fits_thresholds: bool = False
    accept_known: float | None = 0.95


@dataclass(frozen=True, kw_only=True)
class Factories:
    """The functions that make what each phase needs anew.

    Args:
        trainer: Function that makes a Trainer from the arguments that the run decides.
        optimizer_factory: Function of a phase that returns the function from parameter groups to an optimizer.
        loss: Function that makes the training loss of a phase.
        metrics: User-supplied metrics by name, in addition to those of every run; each evaluation copies them.
    """

    trainer: Callable[..., pl.Trainer]
    optimizer_factory: Callable[[ResolvedPhase], OptimizerFactory]
    loss: Callable[[ResolvedPhase], nn.Module]
    metrics: Mapping[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The objects that the phases of a run share.

    Args:
        classifier: Network at the start of the run; rebuilt in the same way when the run is resumed.
        data: Batches of images, or of cached activations.
        schedule: Phases in order.
        cache_policies: For each phase, whether it trains on cached activations.
        folder: Run folder, which exists.
        settings: Values that every phase reads.
        make: Functions that make what each phase needs anew.
        loggers: Loggers beside ``metrics.csv``.
        callbacks: User-supplied callbacks.
        heartbeats: Heartbeats between this process and those of other machines; None where there are none.
    """

    classifier: Classifier
    data: ImageDataModule
    schedule: Sequence[ResolvedPhase]
    cache_policies: Sequence[CachePolicy]
    folder: RunFolder
    settings: RunSettings
    make: Factories
    loggers: Sequence[Logger] = ()
    callbacks: UserCallbacks = field(default_factory=UserCallbacks)
    heartbeats: Heartbeats | None = None

    @property
    def resume_command(self) -> str:
        """Return the command that continues the run."""
        return resume_command(self.folder.path)

    def phase_folder(self, number: int) -> PhaseFolder:
        """Return the folder of a phase by its position in the schedule, from 0."""
        return self.folder.phase(number, self.schedule[number].name)

    def show(self, line: str) -> None:
        """Log a line for the user."""
        log.info("%s", line)

    def make_cache(self, number: int) -> ActivationCache | None:
        """Make the activation cache of a phase, which opens nothing yet; return None where the phase trains on images."""
        policy = self.cache_policies[number]
        if policy.cached_stage is None:
            return None
        return ActivationCache(
            classifier=self.classifier,
            phase=self.schedule[number],
            policy=policy,
            images=self.data.image_views(),
            seed=self.settings.seed,
            limit_bytes=self.settings.cache_limit_bytes,
        )

    def quiet_trainer(self) -> pl.Trainer:
        """Make a Trainer that writes nothing, for evaluation and for heads that need no fit."""
        return self.make.trainer(default_root_dir=str(self.folder.path), use_distributed_sampler=False, **QUIET_TRAINER)


@dataclass(frozen=True, kw_only=True)
class RunSession:
    """The objects of one process that works on a run, from its start or resumption to its end.

    Args:
        metrics_csv: Writer of ``metrics.csv``.
        interruption: Handler of the signals that stop the run.
        rank_monitor: Monitor of the other processes of the run.
        time_left: Estimate of the time left of the schedule.
    """

    metrics_csv: MetricsCsv
    interruption: Interruption
    rank_monitor: RankMonitor
    time_left: TimeLeft

    def reach(self, where: str) -> None:
        """Name the point that the run has reached, and stop there if a signal asked for it.

        Raises:
            Interrupted: A signal has arrived.
        """
        self.interruption.where = where
        self.interruption.check()

    def fit_trainer(self, context: RunContext, number: int) -> pl.Trainer:
        """Make the Trainer that fits one phase."""
        phase = context.schedule[number]
        bar = PhaseProgressBar.fits_terminal()
        display = PhaseProgressBar(self.time_left) if bar else EpochLines(self.time_left)
        checkpoints = PhaseCheckpoints(
            folder=context.phase_folder(number).path,
            metrics_csv=self.metrics_csv,
            every_n_steps=context.settings.checkpoint_every,
            interruption=self.interruption,
        )
        return context.make.trainer(
            max_epochs=phase.epochs,
            accumulate_grad_batches=phase.accumulate,
            gradient_clip_val=phase.gradient_clip,
            default_root_dir=str(context.folder.path),
            num_sanity_val_steps=0,
            # our sampler assigns rows to processes; Lightning's would shuffle even where nothing may be shuffled
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=bar,
            logger=list(context.loggers) or False,
            log_every_n_steps=1,
            plugins=[AtomicCheckpointIO()],
            callbacks=[*context.callbacks.for_a_phase(), display, checkpoints],
        )

    def prepare_trainer(self, context: RunContext, trainer: pl.Trainer) -> None:
        """Check a Trainer before it is called, watch the processes that the call starts, and leave signals to the run.

        Raises:
            UserError: A process would get no images.
        """
        context.data.check_processes(trainer.world_size, [phase.batch_size for phase in context.schedule])
        self.rank_monitor.watch(trainer.strategy.launcher)
        disable_lightning_signal_handlers(trainer)


@contextmanager
def run_session(context: RunContext) -> Iterator[RunSession]:
    """Handle signals and watch the other processes while the block works on a run."""
    hint = context.resume_command
    images = len(context.data.source.index.rows("train"))
    with (
        Interruption(f"continue with: {hint}") as interruption,
        RankMonitor(
            resume_hint=f"Continue with: {hint}", interruption=interruption, heartbeats=context.heartbeats
        ) as rank_monitor,
    ):
        yield RunSession(
            metrics_csv=MetricsCsv(context.folder.metrics),
            interruption=interruption,
            rank_monitor=rank_monitor,
            time_left=TimeLeft(context.schedule, images=images),
        )
