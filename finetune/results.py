"""The results of a run as dataclasses: ``results.json``, and ``result.json`` of each phase.

:mod:`finetune.file_schema` documents every field; the fields here have the names and the order of the files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune.counted import counted

# classes by classes; with several labels two by two for each class
Matrix = Sequence[Sequence[int]]
EPOCH_TEXT = ("phase", "epoch", "step")


@dataclass(frozen=True, kw_only=True)
class SplitMetrics:
    """Metrics of a split.

    Args:
        acc: Fraction of images whose most probable class is the true one; with several labels, whose classes are all correct.
        ece: Expected calibration error.
        f1_macro: F1 score, mean over the classes.
        f1_micro: With several labels, F1 score over all pairs of an image and a class; else None.
        map: With several labels, mean average precision; else None.
        recall: Recall of each class, in the order of the classes.
        loss: Mean cross-entropy in nats.
        confusion: Images by true and predicted class; with several labels a 2 x 2 matrix of each class; None above 1,000 classes.
        confusion_cells: In its place above 1,000 classes: true class, predicted class and images of each pair.
        own: User-supplied metrics by name; None for none.
    """

    acc: float
    ece: float
    f1_macro: float
    f1_micro: float | None = None
    map: float | None = None
    recall: tuple[float, ...]
    loss: float
    confusion: Matrix | Sequence[Matrix] | None = None
    confusion_cells: Matrix | None = None
    own: Mapping[str, float] | None = None

    def scalars(self) -> dict[str, float]:
        """Return the metrics that are single numbers, by name.

        >>> SplitMetrics(acc=0.5, ece=0.0, f1_macro=0.25, recall=(0.5,), loss=1.0).scalars()
        {'acc': 0.5, 'ece': 0.0, 'f1_macro': 0.25, 'loss': 1.0}
        """
        values = {
            "acc": self.acc,
            "ece": self.ece,
            "f1_macro": self.f1_macro,
            "f1_micro": self.f1_micro,
            "map": self.map,
            "loss": self.loss,
            **(self.own or {}),
        }
        return {name: value for name, value in values.items() if value is not None}

    def in_words(self) -> str:
        """Return the main metrics in words.

        >>> SplitMetrics(acc=0.5, ece=0.0, f1_macro=0.25, recall=(0.5,), loss=1.0).in_words()
        'accuracy 0.5000, macro F1 0.2500, loss 1.0000'
        """
        several = f", mean average precision {self.map:.4f}" if self.map is not None else ""
        right = "exact match" if several else "accuracy"
        return f"{right} {self.acc:.4f}, macro F1 {self.f1_macro:.4f}{several}, loss {self.loss:.4f}"


class Offset(NamedTuple):
    """Epochs and optimizer steps of a run before a phase: what is added to those of the phase for the axes of logs."""

    epochs: int = 0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """A row of ``metrics.csv``.

    Args:
        phase: Name of the phase.
        epoch: Epochs before it, over all phases.
        step: Optimizer steps so far, over all phases.
        values: Its numbers by column, ``train/loss`` for example, in the order of the columns.
    """

    phase: str
    epoch: int
    step: int
    values: Mapping[str, float]

    def to_plain(self) -> dict[str, str | float]:
        """Return the row by column.

        >>> EpochRow(phase="head", epoch=0, step=4, values={"val/acc": 0.5}).to_plain()
        {'phase': 'head', 'epoch': 0, 'step': 4, 'val/acc': 0.5}
        """
        return {"phase": self.phase, "epoch": self.epoch, "step": self.step, **self.values}

    @classmethod
    def from_plain(cls, row: Mapping[str, str | float]) -> "EpochRow":
        """Return a row that :func:`finetune.training.callbacks.checkpoint_contents.check_rows` has checked."""
        values = {name: float(value) for name, value in row.items() if name not in EPOCH_TEXT}
        return cls(phase=str(row["phase"]), epoch=int(row["epoch"]), step=int(row["step"]), values=values)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One of the heads that a phase trained side by side.

    Args:
        lr: Peak learning rate.
        best: Monitored metric of its best epoch; None if its loss became NaN.
        best_epoch: That epoch, from 0; None likewise.
    """

    lr: float
    best: float | None
    best_epoch: int | None


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How a linear head was solved.

    Args:
        strengths: Penalties tried.
        chosen: The one that validation chose.
        val_loss: Validation loss of each.
        val_acc: Validation accuracy of each.
        val_objective: Validation mean of the training loss of each, by which one was chosen.
        iterations: Iterations of the solver for each.
        converged: Whether the solver converged for all.
    """

    strengths: tuple[float, ...]
    chosen: float
    val_loss: tuple[float, ...]
    val_acc: tuple[float, ...]
    val_objective: tuple[float, ...]
    iterations: tuple[int, ...]
    converged: bool


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """What a phase did.

    Args:
        name: Name of the phase.
        train: Stages that trained, from the input to the head.
        frozen: Stages that did not.
        epochs: Epochs that were run.
        steps: Optimizer steps that were run.
        restored: ``best`` or ``last``: the epoch whose weights were passed on; ``start``: the weights that the phase began with,
            because no epoch was better.
        weights: ``raw`` or ``ema``: the weights that were validated and passed on.
        best_epoch: Best epoch, from 0.
        best: The monitored metric of that epoch, by name.
        rates: Peak learning rate of each stage that trained.
        rows: Rows of ``metrics.csv``, one per epoch; None in ``results.json``, which does not repeat them.
        probe: For a head that was solved, the penalties tried; else None.
        trials: For heads trained side by side, each with its rate; else None.
        cached_after: Stage whose cached output was trained on; empty where the phase trained on images.
        cached_view: ``evaluation`` or ``training``: the view that was cached; empty without a cache.
        views: Training views of each image that the epochs drew from; 0 for a new one every epoch.
        seconds: Wall time in the process that finished the phase.
    """

    name: str
    train: tuple[str, ...]
    frozen: tuple[str, ...]
    epochs: int
    steps: int
    restored: str
    weights: str
    best_epoch: int
    best: Mapping[str, float]
    rates: Mapping[str, float]
    rows: tuple[EpochRow, ...] | None = None
    probe: ProbeResult | None = None
    trials: tuple[TrialResult, ...] | None = None
    cached_after: str = ""
    cached_view: str = ""
    views: int = 0
    seconds: float = 0.0

    def in_words(self) -> str:
        """Describe for the user how the phase ended."""
        (metric, value), epoch = next(iter(self.best.items())), self.best_epoch + 1
        if self.trials is not None:
            how = f"with lr {self.rates['head']:g} of {len(self.trials)} tried, at epoch {epoch}"
        elif self.probe is not None:
            end = "" if self.probe.converged else " (not converged)"
            tried = f"{self.probe.chosen:.1e} of {len(self.probe.strengths)} tried"
            how = f"with weight decay {tried}, {self.steps} iterations{end}"
        else:
            how = f"at epoch {epoch} of {self.epochs}"
        if self.restored == "start":
            how += ", not better than its start, which is kept"
        return f"{metric} {value:.4f} {how}, {self.seconds:.0f} s"


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall time of a run.

    Args:
        training: Sum of the phases.
        phases: Each phase by its name.
    """

    training: float
    phases: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The data that a run was trained on.

    Args:
        fingerprint: Digest of classes, paths, targets, splits and contents.
        classes: Class names in the order of the logits.
        counts: Images of each class, by split.
        skipped: Unreadable files that were left out.
        max_pixels: Larger images count as unreadable, in prediction too.
        high_depth: ``full`` or ``stretch``: how more than 8 bits become 8, in prediction too.
        integer_range: Numbers of more than 8 bits that become black and white; None without such images.
        float_range: The same for floating point.
    """

    fingerprint: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    skipped: int
    max_pixels: int
    high_depth: str
    integer_range: tuple[float, float] | None = None
    float_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneOrigin:
    """Where a network came from.

    Args:
        source: Library of the network; ``own`` for a user-supplied class.
        name: Its name there, or that class.
        weights: Where its weights came from, as the configuration names it.
        place: Repository, package, address or file that the name stands for; empty in runs of earlier versions.
        licence: Licence of those weights; ``unknown`` where nobody recorded one, None for random weights.
        revision: Commit of the hub's repository, where it is known.
    """

    source: str
    name: str
    weights: str
    place: str = ""
    licence: str | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Imbalance:
    """How a run handles classes of different size.

    Args:
        loss: Training loss.
        class_weights: ``balanced`` or ``none``.
        sampling: ``balanced``, or that each image is seen once per epoch.
    """

    loss: str
    class_weights: str
    sampling: str


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What was decided before training, and goes into ``results.json`` and into the bundle.

    Args:
        backbone: Where the network came from.
        schedule: Name of the schedule.
        imbalance: How classes of different size are handled.
        precision: As Lightning's Trainer takes it.
        compiled: Whether what trains is compiled by ``torch.compile``.
    """

    backbone: BackboneOrigin
    schedule: str
    imbalance: Imbalance
    precision: str
    compiled: bool


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The temperature by which the model divides its logits (Guo et al. 2017).

    Args:
        temperature: Divisor of the logits, fitted on the validation images; 1 if they support none.
        interval: 95 % interval of the temperature by its likelihood; None if they support none.
        images: Validation images of the fit.
        why_not: Why they support none; empty if they do.
        before: What calibration error and loss of each split would be without it: ``val/ece``, ``val/loss``, ``test/ece``,
            ``test/loss``.
    """

    temperature: float
    interval: tuple[float, float] | None = None
    images: int
    why_not: str = ""
    before: Mapping[str, float]

    def in_words(self) -> str:
        """Return one line for the end of a run and the card; empty if there is no temperature.

        >>> Calibration(temperature=1.5, interval=(1.2, 1.8), images=90, before={"test/ece": 0.08}).in_words()
        'temperature 1.5 (95%: 1.2 to 1.8), fitted on 90 validation images; without it the calibration error is 0.0800'
        """
        if self.interval is None:
            return ""
        low, high = self.interval
        return (
            f"temperature {self.temperature:.3g} (95%: {low:.3g} to {high:.3g}), fitted on "
            f"{counted(self.images, 'validation image')}; without it the calibration error is {self.before['test/ece']:.4f}"
        )


@dataclass(frozen=True, kw_only=True)
class DecisionThresholds:
    """From which probability on a model for several labels predicts each class.

    Args:
        values: Threshold of each class, fitted on the validation images for its F1 score.
        images: Validation images of the fit.
        left: Classes left at one half, because no validation image shows them, or every one does.
        before: What exact match and F1 of each split would be with one half for every class: ``val/acc``, ``val/f1_macro``,
            ``val/f1_micro``, ``test/acc``, ``test/f1_macro``, ``test/f1_micro``.
    """

    values: tuple[float, ...]
    images: int
    left: tuple[str, ...] = ()
    before: Mapping[str, float]

    def in_words(self) -> str:
        """Return one line for the end of a run and the card.

        >>> DecisionThresholds(values=(0.31, 0.4, 0.5), images=90, left=("c",), before={"test/f1_macro": 0.61}).in_words()
        'a threshold from 0.31 to 0.5 for each class, fitted on 90 validation images; with one half the macro F1 is 0.6100'
        """
        return (
            f"a threshold from {min(self.values):.3g} to {max(self.values):.3g} for each class, fitted on "
            f"{counted(self.images, 'validation image')}; with one half the macro F1 is {self.before['test/f1_macro']:.4f}"
        )


@dataclass(frozen=True, kw_only=True)
class UnknownImages:
    """How the model tells images that are unlike its training images.

    Args:
        accept: Share of the validation images that count as known.
        threshold: Mahalanobis distance from which on an image is unknown; None if there is none.
        images: Training images that the score was fitted on.
        val_images: Validation images of the threshold.
        known: Share of the images of ``val`` and ``test`` that count as known; empty if there is no threshold.
        why_not: Why there is none; empty if there is one.
    """

    accept: float
    threshold: float | None = None
    images: int = 0
    val_images: int = 0
    known: Mapping[str, float]
    why_not: str = ""

    def in_words(self) -> str:
        """Return one line for the end of a run and the card; empty if there is no threshold.

        >>> UnknownImages(accept=0.95, threshold=40.0, val_images=90, known={"val": 0.956, "test": 0.94}).in_words()
        'images unlike the training images are told as unknown; of the test images, which are like them, 94.0% count as known'
        """
        if self.threshold is None:
            return ""
        return (
            "images unlike the training images are told as unknown; of the test images, which are like them, "
            f"{self.known['test']:.1%} count as known"
        )


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a model that grew from an earlier one does on the classes of that one, and on its new ones.

    Args:
        old_classes: Classes of the earlier model, under their names now.
        new_classes: Classes that it did not have.
        rehearsed: Whether the training images show old classes.
        old_images: Test images of old classes.
        new_images: Test images of new classes.
        before: Accuracy of the earlier model on the test images of old classes; None without such images.
        after: Accuracy of this model on the same images, with the new classes to choose from too; None likewise.
        among_old: The same, choosing among the old classes alone as the earlier model did: below ``before``, they were forgotten.
        new: Its accuracy on the test images of new classes; None without such images.
        why_not: Why there are no test images of old classes; empty if there are.
    """

    old_classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    rehearsed: bool
    old_images: int
    new_images: int
    before: float | None = None
    after: float | None = None
    among_old: float | None = None
    new: float | None = None
    why_not: str = ""

    def in_words(self) -> str:
        """Return one line for the end of a run and the card.

        >>> growth = Growth(old_classes=("a", "b"), new_classes=("c",), rehearsed=True, old_images=40, new_images=9,
        ...     before=0.95, after=0.925, among_old=0.95, new=1.0)
        >>> growth.in_words()
        '2 old classes: accuracy 0.9500 before, 0.9250 now (0.9500 among these alone) on 40 test images; 1 new class: 1.0000 on 9'
        """
        old = counted(len(self.old_classes), "old class", "old classes")
        if self.before is None or self.after is None or self.among_old is None:
            words = f"{old}: not tested, {self.why_not}"
        else:
            words = (
                f"{old}: accuracy {self.before:.4f} before, {self.after:.4f} now ({self.among_old:.4f} among these "
                f"alone) on {counted(self.old_images, 'test image')}"
            )
        if self.new is not None:
            words += (
                f"; {counted(len(self.new_classes), 'new class', 'new classes')}: {self.new:.4f} on {self.new_images}"
            )
        return words


@dataclass(frozen=True, kw_only=True)
class Results:
    """The contents of ``results.json``.

    Args:
        test: Metrics of the calibrated model on the test images.
        val: Metrics of the calibrated model on the validation images.
        phases: Result of each phase, without its rows.
        seconds: Wall time.
        data: The data that was trained on.
        versions: Versions of Python, of finetune and of the libraries that a result depends on.
        backbone: Where the network came from.
        schedule: Name of the schedule.
        imbalance: How classes of different size are handled.
        precision: As Lightning's Trainer takes it.
        compiled: Whether what trained was compiled.
        seed: Seed of all randomness.
        weights_hash: SHA-256 of the final weights.
        threads: Threads that torch computed with.
        calibration: The temperature of the model; None with ``calibrate=false``, and in runs of earlier versions.
        unknown: How the model tells unknown images; None with ``accept_known=null``, and in runs of earlier versions.
        thresholds: With several labels, decision thresholds that were fitted; None for one half.
        growth: Old and new classes of a model that grew from an earlier one; None for any other.
    """

    test: SplitMetrics
    val: SplitMetrics
    phases: tuple[PhaseResult, ...]
    seconds: Seconds
    data: DataFacts
    versions: Mapping[str, str]
    backbone: BackboneOrigin
    schedule: str
    imbalance: Imbalance
    precision: str
    compiled: bool
    seed: int
    weights_hash: str
    threads: int
    calibration: Calibration | None = None
    unknown: UnknownImages | None = None
    thresholds: DecisionThresholds | None = None
    growth: Growth | None = None
