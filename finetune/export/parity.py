"""Check that an exported model predicts what the trained model predicts, with the format's own library in a fresh process.

There are two comparisons on real images. *From the same pixels*: the client's network runs on images that we prepared, so only
the network can differ. *From the file*: the client does everything from the file to probabilities: decoding by Pillow, resize,
crop, network. Files that plain Pillow decodes to other pixels than our decoder are measured and reported separately.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from finetune.counted import counted
from finetune.data.decode import DecodeOptions, decode_file, to_tensor
from finetune.data.image_file import UnreadableImage
from finetune.data.transforms import eval_view
from finetune.errors import RunError, UserError
from finetune.export import client
from finetune.export.client import GraphClient
from finetune.export.formats.kind import ExportFormat
from finetune.export.parity_report import Accuracies, Bounds, Difference, ParityReport
from finetune.models.classifier import Classifier

# K = classes, N = images

Shares = npt.NDArray[np.float32]
BATCH = 16


FP32 = Bounds()
# half precision keeps 11 bits; eight-bit weights and activations keep 8 bits per layer: probabilities change a little, the top
# class rarely does
FP16 = Bounds(from_pixels=2e-2, from_files=2e-2, agreement=0.99)
INT8 = Bounds(from_pixels=1.0, from_files=1.0, mean=0.03, agreement=0.95)
BOUNDS = {"fp32": FP32, "fp16": FP16, "int8": INT8}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The trained model's predictions.

    Args:
        files: Image files.
        pixels: Evaluation views, uint8 (N, C, H, W).
        shares: Probabilities, float32 (N, K).
        unknown: Scores of unknown images, float32 (N,); None for a model that has none.
        origin: Where the images come from, for the report.
        decoded_otherwise: Whether plain Pillow decodes each file to other pixels than our decoder, or cannot open it, bool (N,).
        unopened: Whether plain Pillow cannot open each file, bool (N,).
        reduced: Number of files that training and ``finetune predict`` read at a reduced scale, and the largest difference of
            a probability that this causes.
        unreadable: Number of files left out because they cannot be read.
        targets: Index of the true class of each image, or zeros and ones (N, K) for several labels; None if not known.
        thresholds: For several labels, the probability above which each class is predicted; None for one label per image.
        decode_options: How the run decodes files.
    """

    files: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]
    shares: Shares
    unknown: Shares | None = None
    origin: str
    decoded_otherwise: npt.NDArray[np.bool_]
    unopened: npt.NDArray[np.bool_]
    decode_options: DecodeOptions
    unreadable: int = 0
    reduced: tuple[int, float] = (0, 0.0)
    targets: npt.NDArray[np.int64] | None = None
    thresholds: tuple[float, ...] | None = None

    def answers(self, shares: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return what probabilities answer: the most probable class (N, 1), or which classes are above their threshold (N, K)."""
        if self.thresholds is None:
            return np.asarray(shares.argmax(1))[:, None]
        return np.asarray(shares.astype(np.float64) > np.array(self.thresholds))

    def accuracy(self, shares: npt.NDArray[np.generic], targets: npt.NDArray[np.int64]) -> float:
        """Return the share of images whose answer is right, with several labels in every one."""
        return float((self.answers(shares) == targets.reshape(len(targets), -1)).all(1).mean())


@torch.inference_mode()
def make_reference(
    classifier: Classifier,
    files: Sequence[str],
    *,
    origin: str,
    targets: Sequence[int] | Sequence[Sequence[int]] | None = None,
    decode_options: DecodeOptions | None = None,
) -> Reference:
    """Compute the trained model's probabilities as ``finetune predict`` does, but read large JPEGs at full scale.

    ``finetune predict`` reads large JPEGs at half their size or less if that is enough; other clients read them in full. The
    difference is measured and reported.

    Raises:
        UserError: None of the files can be read.
    """
    view, channels = eval_view(classifier.input_spec), classifier.input_spec.channels
    options = DecodeOptions(channels=channels) if decode_options is None else decode_options
    smaller: list[tuple[int, torch.Tensor]] = []
    kept: list[str] = []
    views: list[torch.Tensor] = []
    otherwise, unopened, positions = [], [], []
    for number, file in enumerate(files):
        try:
            image = to_tensor(decode_file(file, options))
        except UnreadableImage:
            continue
        reduced = to_tensor(decode_file(file, options, min_side=view.min_side))
        if reduced.shape != image.shape:
            smaller.append((len(kept), view(reduced)))
        kept.append(file)
        views.append(view(image))
        positions.append(number)
        by_pillow = _by_pillow(file, options) if channels in (1, 3) else None
        unopened.append(by_pillow is None and channels in (1, 3))
        otherwise.append(by_pillow is None or not np.array_equal(by_pillow, image.numpy()))
    if not kept:
        raise UserError(f"--images: none of the {len(files)} files can be read as an image. Give others.")
    pixels = torch.stack(views)
    features = torch.cat([classifier.embed(part) for part in torch.split(pixels, BATCH)])
    probabilities = classifier.probabilities(classifier.logits(features))
    largest_reduced = 0.0
    for number, reduced in smaller:
        deviation = classifier.probabilities(classifier(reduced[None]))[0] - probabilities[number]
        largest_reduced = max(largest_reduced, float(deviation.abs().max()))
    return Reference(
        reduced=(len(smaller), largest_reduced),
        files=tuple(kept),
        pixels=pixels.numpy(),
        shares=probabilities.numpy(),
        unknown=None if classifier.unknown is None else classifier.unknown(features).numpy(),
        origin=origin,
        decoded_otherwise=np.array(otherwise),
        unopened=np.array(unopened),
        unreadable=len(files) - len(kept),
        targets=None if targets is None else np.array(targets, dtype=np.int64)[positions],
        thresholds=classifier.thresholds if classifier.multi_label else None,
        decode_options=options,
    )


def _by_pillow(file: str, options: DecodeOptions) -> npt.NDArray[np.uint8] | None:
    """Return the pixels (C, H, W) that plain Pillow gives for a file; None if it cannot open it."""
    try:
        image = client.pillow(file, grey=options.channels == 1, reading=options.to_plain())
        return np.asarray(client.pixels_of(image, "nchw")[0])
    except Exception:  # any error of Pillow's plain conversion
        return None


@dataclass(frozen=True, kw_only=True)
class ClientAnswer:
    """What a format's own library computed.

    Args:
        opened_by: The library and its version.
        classes: Class names that the export holds.
        from_pixels: Probabilities (N, K) for pixels that we prepared; a further column of the scores of unknown images if the
            export has them.
        from_files: The same for the files.
    """

    opened_by: str
    classes: Sequence[str]
    from_pixels: npt.NDArray[np.generic]
    from_files: npt.NDArray[np.generic]


def ask_clients(
    exports: Sequence[tuple[ExportFormat, Path, Reference]], *, folder: Path | None = None
) -> list[ClientAnswer]:
    """Open exports in one fresh process, each with its format's own library.

    Args:
        exports: Format, file or folder, and reference images of each export.
        folder: Folder for the files that pass between the processes; None for the system's own.

    Raises:
        RunError: The client could not open or run an export.
    """
    with tempfile.TemporaryDirectory(dir=folder) as passed:
        jobs: list[client.ClientJob] = []
        for number, (chosen, target, reference) in enumerate(exports):
            pixels = Path(passed) / f"{number}.npy"
            np.save(pixels, reference.pixels)
            decoded = {}
            for at in np.flatnonzero(reference.decoded_otherwise) if issubclass(chosen.client, GraphClient) else ():
                decoded[str(at)] = str(Path(passed) / f"{number}-{at}.npy")
                np.save(decoded[str(at)], decode_file(reference.files[at], reference.decode_options).transpose(2, 0, 1))
            jobs.append(
                {
                    "target": str(target.resolve()),
                    "grey": reference.pixels.shape[1] == 1,
                    "multi_label": reference.thresholds is not None,
                    "by_pillow": reference.pixels.shape[1] in (1, 3),
                    "pixels": str(pixels),
                    "decoded": decoded,
                    "unopened": np.flatnonzero(reference.unopened).tolist(),
                    "reading": reference.decode_options.to_plain(),
                    "files": [os.path.abspath(file) for file in reference.files],
                    "answers": str(Path(passed) / f"{number}.npz"),
                }
            )
        answers = []
        for opened, job in zip(run_client(jobs, [chosen for chosen, _, _ in exports], passed), jobs, strict=True):
            with np.load(job["answers"]) as arrays:
                answers.append(
                    ClientAnswer(
                        opened_by=opened["opened_by"],
                        classes=opened["classes"],
                        from_pixels=arrays["from_pixels"],
                        from_files=arrays["from_files"],
                    )
                )
    return answers


def run_client(jobs: Sequence[client.ClientJob], formats: Sequence[ExportFormat], folder: str) -> list[client.Opened]:
    """Run :mod:`finetune.export.client` on all jobs in one fresh process that cannot import this package; return its answers.

    The text of each format's client is passed along, because its file cannot be imported there.

    Args:
        jobs: Exports to open, and the images for each.
        formats: Format of each job.
        folder: Folder for the files that pass between the processes.

    Raises:
        RunError: The client could not open or run an export.
    """
    task = Path(folder) / "task.json"
    texts = [{"client": f.client.__name__, "client_code": inspect.getsource(f.client)} for f in formats]
    task.write_text(json.dumps([{**job, **text} for job, text in zip(jobs, texts, strict=True)]), encoding="utf-8")
    # -I: no current folder, no PYTHON* variables; -S: no site, so no .pth file that leads to this package
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", WITHOUT_FINETUNE, client.__file__, str(task), *library_folders()],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"export: the format's own library cannot open it in a fresh process. {last}")
    return list(json.loads(done.stdout.splitlines()[-1]))


# makes libraries importable and this package not, verifies that, and runs the given script
WITHOUT_FINETUNE = """
import runpy, sys
script, task, *folders = sys.argv[1:]
sys.path.extend(folders)
sys.modules["finetune"] = None  # where the package lies beside the libraries; None makes its import fail
try:
    import finetune
except ImportError:
    sys.argv = [script, task]
    runpy.run_path(script, run_name="__main__")
else:
    sys.exit("finetune can be imported: this would prove nothing")
"""


def library_folders() -> list[str]:
    """Return the folders this process imports libraries from; this package may lie in one of them."""
    return [entry for entry in sys.path if entry and os.path.isdir(entry)]


def compare(
    form: str, answer: ClientAnswer, reference: Reference, *, classes: Sequence[str], precision: str = "fp32"
) -> ParityReport:
    """Build the report that is written to ``parity.json``.

    Args:
        form: Name of the format.
        answer: What the format's own library computed.
        reference: Predictions of the trained model.
        classes: Class names of the trained model.
        precision: ``fp32``, ``fp16`` or ``int8``; selects the bounds.
    """
    bounds, width = BOUNDS[precision], len(classes)
    pixels, scores = np.split(np.asarray(answer.from_pixels), [width], axis=1)
    files = np.asarray(answer.from_files)[:, :width]
    decoded = reference.decoded_otherwise & ~reference.unopened
    same = ~reference.decoded_otherwise
    by_pixels = difference(reference, pixels)
    by_files = difference(reference, files, same)
    others = difference(reference, files, decoded)
    problems, remarks = [], []
    if list(answer.classes) != list(classes):
        problems.append("its class names differ from the model's, or their order does")
    if by_pixels.largest > bounds.from_pixels or by_pixels.mean > bounds.mean:
        problems.append(
            f"from the same pixels a probability differs by {by_pixels.largest:.1e} (mean {by_pixels.mean:.1e}); "
            f"limit {bounds.from_pixels:.0e} (mean {bounds.mean:.0e})"
        )
    if by_pixels.agreement < bounds.agreement:
        problems.append(f"the answers agree in {by_pixels.agreement:.1%}, required {bounds.agreement:.0%}")
    if by_files.largest > bounds.from_files:
        problems.append(f"from the file a probability differs by {by_files.largest:.1e}, limit {bounds.from_files:.0e}")
    if by_files.agreement < bounds.agreement:
        problems.append(f"from the file the answers agree in {by_files.agreement:.1%}")
    if unopened := int(reference.unopened.sum()):
        remarks.append(
            f"plain Pillow cannot open {counted(unopened, 'file')} that the model was compared on: of these the export got "
            "pixels that finetune decoded"
        )
    if others.images and reference.pixels.shape[1] not in (1, 3):
        remarks.append(f"Pillow reads no files of {reference.pixels.shape[1]} channels: compared from decoded pixels")
    elif others.images:
        remarks.append(
            f"plain Pillow decodes {counted(others.images, 'file')} to other pixels (transparency, profiles, high bit "
            f"depths); probabilities differ by up to {others.largest:.1e} there, agreement {others.agreement:.1%}"
        )
    if reference.reduced[0]:
        remarks.append(
            f"finetune reads {counted(reference.reduced[0], 'large JPEG file')} at a reduced scale, the export in full; that "
            f"alone changes the probabilities by up to {reference.reduced[1]:.1e}"
        )
    unknown = None
    if reference.unknown is not None and not scores.shape[1]:
        remarks.append(
            "it cannot tell images that are unlike the training images, as the model does; onnx, torch_export and web can"
        )
    elif reference.unknown is not None:
        unknown = score_difference(reference.unknown, scores[:, 0])
        found = f"the score of unknown images differs by up to {unknown.largest:.1e}, the decision in {1 - unknown.agreement:.1%}"
        if precision != "fp32":
            remarks.append(found)
        elif unknown.largest > bounds.from_files:
            problems.append(f"{found}; limit {bounds.from_files:.0e}")
    accuracy = None
    if reference.targets is not None:
        accuracy = Accuracies(
            trained=reference.accuracy(reference.shares, reference.targets),
            exported=reference.accuracy(pixels, reference.targets),
        )
    return ParityReport(
        format=form,
        precision=precision,
        opened_by=answer.opened_by,
        images=reference.origin,
        unreadable=reference.unreadable,
        bounds=bounds,
        from_pixels=by_pixels,
        from_files=by_files,
        decoded_otherwise=others,
        passed=not problems,
        problems=tuple(problems),
        remarks=tuple(remarks),
        accuracy=accuracy,
        unknown=unknown,
    )


def score_difference(ours: Shares, theirs: npt.NDArray[np.generic]) -> Difference:
    """Return the largest and the mean difference of scores of unknown images, and the fraction with the same decision."""
    deviation = np.nan_to_num(np.abs(ours - theirs.astype(np.float64)), nan=1e9, posinf=1e9)
    return Difference(
        images=len(ours),
        largest=float(deviation.max()),
        mean=float(deviation.mean()),
        agreement=float(((ours <= 1) == (theirs.astype(np.float64) <= 1)).mean()),
    )


def difference(
    reference: Reference, theirs: npt.NDArray[np.generic], chosen: npt.NDArray[np.bool_] | None = None
) -> Difference:
    """Return the largest and the mean difference of a probability, and the fraction of answers that are the same.

    Args:
        reference: Predictions of the trained model.
        theirs: Probabilities of the export (N, K).
        chosen: Which images are compared, bool (N,); None compares all.
    """
    ours = reference.shares
    if chosen is not None:
        ours, theirs = ours[chosen], theirs[chosen]
    if not len(ours):
        return Difference(images=0, largest=0.0, mean=0.0, agreement=1.0)
    deviation = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    deviation = np.where(np.isnan(deviation), np.inf, deviation)
    return Difference(
        images=len(ours),
        largest=float(min(deviation.max(), 1e9)),
        mean=float(min(deviation.mean(), 1e9)),
        agreement=float((reference.answers(ours) == reference.answers(theirs)).mean()),
    )
