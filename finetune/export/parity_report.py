"""``parity.json``: how far an export agrees with the trained model; :mod:`finetune.file_schema` documents every field."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The largest differences that an export may show.

    Args:
        from_pixels: Largest allowed difference of a probability from the same pixels.
        from_files: Largest allowed difference of a probability from the file.
        mean: Largest allowed mean difference of a probability from the same pixels.
        agreement: Smallest fraction, in [0, 1], of answers that are the same.
    """

    from_pixels: float = 1e-4
    from_files: float = 1e-3
    mean: float = 1.0
    agreement: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far the probabilities of some images differ.

    Args:
        images: Number of images.
        largest: Largest difference of a probability.
        mean: Mean difference of a probability.
        agreement: Fraction of answers that are the same: the most probable class of each image, or with several labels whether
            each class is predicted for it.
    """

    images: int
    largest: float
    mean: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Accuracy on images whose true classes are known.

    Args:
        trained: Of the trained model.
        exported: Of the export.
    """

    trained: float
    exported: float


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Speed from pixels to probabilities; medians over the rounds.

    Args:
        batch_1_ms: Milliseconds for one image.
        batch_32_ms: Milliseconds for 32 images.
        images_per_second: In batches of 32.
    """

    batch_1_ms: float
    batch_32_ms: float
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of an ONNX export beside the trained model.

    Args:
        threads: Threads that both computed with.
        processor: Name of the processor.
        pixels: Height and width of the images.
        rounds: Rounds that were timed.
        ways: Speed of ``pytorch`` and of each precision.
    """

    threads: int
    processor: str
    pixels: tuple[int, ...]
    rounds: int
    ways: Mapping[str, Throughput]


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The contents of ``parity.json``; a part, which prepares no images, has no ``from_files``.

    Args:
        format: Name of the format.
        precision: ``fp32``, ``fp16`` or ``int8``.
        opened_by: The client that opened the export, and its version.
        images: Where the images come from.
        unreadable: Files left out because they cannot be read.
        bounds: The differences that were allowed; None for a part.
        from_pixels: Difference from the same pixels; None where nothing was compared.
        from_files: Difference of all that the client does, from the file on; None for a part.
        decoded_otherwise: The same for files that plain Pillow decodes to other pixels; None for a part.
        passed: The decision.
        problems: Why it did not pass.
        remarks: What to know although it did.
        accuracy: Accuracies; None where the true classes are not known.
        speed: Speed of an ONNX export; None for the other formats.
        unknown: Difference of the scores of unknown images, from the same pixels; None where the model or the export has none.
        weights: SHA-256 of the weights in the model's bundle; empty where it is not known.
    """

    format: str
    precision: str
    opened_by: str
    images: str
    unreadable: int
    bounds: Bounds | None = None
    from_pixels: Difference | None = None
    from_files: Difference | None = None
    decoded_otherwise: Difference | None = None
    passed: bool
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    accuracy: Accuracies | None = None
    speed: Speed | None = None
    unknown: Difference | None = None
    weights: str = ""

    def _verdict(self) -> str:
        if not self.passed:
            return "FAILED"
        # comparing nothing proves nothing
        from_nothing = self.from_files is not None and not self.from_files.images
        return "passed from the same pixels; NOT COMPARED from files" if from_nothing else "passed"

    def summary(self) -> list[str]:
        """Return the report's lines for the terminal."""
        lines = []
        if self.from_pixels is not None:
            compared = f"{self.opened_by}, {self.from_pixels.images} images: {self.images}"
            lines.append(f"parity: {self._verdict()} ({compared})")
        for measured, words in ((self.from_pixels, "same pixels: "), (self.from_files, "from files:  ")):
            if measured is not None:
                lines.append(
                    f"  {words}largest difference {measured.largest:.1e}, the same answers in {measured.agreement:.1%}"
                )
        if self.unknown is not None:
            same = f"{self.unknown.agreement:.1%}"
            lines.append(f"  unknown:     largest difference {self.unknown.largest:.1e}, the same decision in {same}")
        if self.accuracy is not None:
            lines.append(f"  accuracy:    {self.accuracy.exported:.4f}, trained model {self.accuracy.trained:.4f}")
        if self.speed is not None:
            lines += [
                f"  {way:12} {times.batch_1_ms:.1f} ms for one image, {times.images_per_second:.1f} images a second in "
                "batches of 32"
                for way, times in self.speed.ways.items()
            ]
            lines.append("  (measured now, on this machine, from pixels to probabilities)")
        return lines + [f"  {text}" for text in (*self.problems, *self.remarks)]
