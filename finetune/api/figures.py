"""Figures for a notebook: a batch of training views, a confusion matrix, the worst mistakes. Each returns a matplotlib figure."""

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.api.model_argument import run_folder
from finetune.arguments import WHOLE, public
from finetune.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from finetune.api.model_argument import Run
    from finetune.inference.evaluate import Evaluation

# up to this many classes their names and counts are written into the matrix
_MOST_NAMED = 25


@public(images=WHOLE)
def show_batch(
    data: Any,
    *,
    images: int = 16,
    augment: str = "standard",
    size: int | tuple[int, int] = 128,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> "Figure":
    """Return training images as the network would see them, with their classes.

    Args:
        data: As for :func:`finetune.fit`.
        images: How many.
        augment: The training view, ``none`` for the evaluation view.
        size: Side, or height and width, of the views in pixels.
        channels: 1 for grey images, 3 for colour; None takes what the data has.
        classes: Class names of a data set.
        seed: Which images, and which views of them.
        overrides: Whatever else the command line takes.

    Raises:
        UserError: There is no such data, or no such view.
    """
    import torch

    from finetune.api.settings import FitArguments
    from finetune.build.data import build_source
    from finetune.data.transforms import train_view
    from finetune.input_spec import InputSpec

    _check_number(images)
    arguments = FitArguments(data=data, channels=channels, classes=classes, seed=seed, overrides=overrides)
    config, objects = arguments.config_and_objects()
    source = build_source(config, download=True) if objects.source is None else objects.source
    pair = (size, size) if isinstance(size, int) else size
    spec = InputSpec(channels=source.decode_options.channels, size=pair, mean=(0.5,), std=(0.5,))
    view, index = train_view(spec, augment=augment), source.index
    train = index.rows("train")
    rows = np.random.default_rng(seed).permutation(train)[:images]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pictures = [view(source.read(int(row), min_side=view.min_side)).permute(1, 2, 0).numpy() for row in rows]
    titles = [_label(index, int(row)) for row in rows]
    return _pictures(pictures, titles)


@public
def plot_confusion(result: "Run | Evaluation") -> "Figure":
    """Return the confusion matrix of a test: a row for each true class, a column for each predicted one.

    Args:
        result: What :func:`finetune.fit` or :func:`finetune.evaluate` returned, or a run folder.

    Raises:
        UserError: The model predicts several labels, or has over 1,000 classes.
    """
    metrics, classes = _metrics_of(result)
    if metrics.map is not None or metrics.confusion is None:
        raise UserError(
            "result: has no single confusion matrix, as models of several labels or over 1,000 classes have none."
        )
    matrix = np.array(metrics.confusion)
    side = min(4 + 0.3 * len(matrix), 14)
    figure = _figure((side + 1, side))
    axes = figure.subplots()
    # by row, so that a rare class is as visible as a frequent one
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(matrix) <= _MOST_NAMED:
        names = list(classes) or [str(number) for number in range(len(matrix))]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        for true, predicted in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            axes.text(predicted, true, matrix[true, predicted], ha="center", va="center", color=colour, fontsize=8)
    return figure


def _check_number(images: int) -> None:
    if type(images) is not int or images < 1:
        raise UserError(f"images={images!r}: must be a whole number of at least 1.")


@public(images=WHOLE)
def top_losses(run: "Run", *, images: int = 9) -> "Figure":
    """Return the test images of a run that the model was most wrong about, with true class, answer and loss.

    Args:
        run: What :func:`finetune.fit` returned, or a run folder. Its image files must still be there.
        images: How many.

    Raises:
        UserError: The run has no such files, or the model predicts several labels.
    """
    from finetune.data.decode import decode_file
    from finetune.data.image_file import UnreadableImage
    from finetune.inference.decode_options import decode_options_of
    from finetune.report.run_files import check_run
    from finetune.run_folder import RunFolder
    from finetune.safe_files import inside, read_text

    _check_number(images)
    folder = check_run(run_folder(run))
    file = RunFolder(folder).predictions
    rows = list(csv.DictReader(io.StringIO(read_text(inside(folder, file.name)), newline="")))
    if rows and "target_probability" not in rows[0]:
        raise UserError("run: its model predicts several labels, which have no single loss a picture.")
    rows.sort(key=lambda row: float(row["target_probability"]))
    decode_options = decode_options_of(folder)
    pictures, titles = [], []
    for row in rows[:images]:
        try:
            pictures.append(decode_file(row["path"], decode_options))
        except UnreadableImage as error:
            raise UserError(f"run: its test images are no longer there, or are not files. {error}") from error
        loss = -math.log(max(float(row["target_probability"]), 1e-12))
        titles.append(f"{row['target']}, answer {row['predicted']}\nloss {loss:.2f}")
    return _pictures(pictures, titles)


def _metrics_of(result: Any) -> tuple[Any, Sequence[str]]:
    """Return the test metrics of a result, and the class names where it knows them."""
    from finetune.inference.evaluate import Evaluation
    from finetune.report.run_files import read_run
    from finetune.training.run_result import RunResult

    if isinstance(result, Evaluation):
        return result.metrics, ()
    results = result.results if isinstance(result, RunResult) else read_run(run_folder(result, "result")).results
    return results.test, results.data.classes


def _label(index: Any, row: int) -> str:
    if not index.multi_label:
        return str(index.classes[int(index.targets[row])])
    return ", ".join(name for name, shown in zip(index.classes, index.targets[row], strict=True) if shown) or "none"


def _figure(size: tuple[float, float]) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("figures: need matplotlib. Install it: pip install matplotlib") from None

    return Figure(figsize=size, layout="constrained")


def _pictures(pictures: Sequence[Any], titles: Sequence[str]) -> "Figure":
    columns = min(math.ceil(math.sqrt(len(pictures))), 8)
    rows = math.ceil(len(pictures) / columns)
    figure = _figure((1.8 * columns, 2.1 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture, title in zip(grid.flat, pictures, titles, strict=False):
        # of two channels the first, of more than three the first three, as in the reports
        grey = picture.shape[2] < 3
        axes.imshow(picture[..., 0] if grey else picture[..., :3], cmap="grey" if grey else None, vmin=0, vmax=255)
        axes.set_title(title, fontsize=8)
    return figure
