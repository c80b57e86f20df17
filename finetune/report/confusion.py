"""Confusion chart with confused classes next to each other, and the most frequent confusions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from scipy.sparse import csr_array

from finetune.report.figures import GRID, HIT, MISS, drawing, inline_svg, new_figure
from finetune.results import SplitMetrics
from finetune.terminal import printable

# more classes cannot be read in one chart: those with the most mistakes are shown
MOST_CLASSES = 200
# up to this many classes the counts are written into the cells
_WITH_COUNTS = 30
# up to this many classes have large cells, which still fit beside the table and on a telephone
_LARGE_CELLS = 5
_LABEL_LETTERS = 22

Counts = npt.NDArray[np.int64]


def confusion_of(metrics: SplitMetrics, classes: int) -> csr_array:
    """Return the confusion counts, true class by predicted class, from the whole matrix or from its non-zero cells."""
    if metrics.confusion is not None:
        return csr_array(np.array(metrics.confusion, dtype=np.int64))
    true, predicted, images = np.array(metrics.confusion_cells, dtype=np.int64).reshape(-1, 3).T
    return csr_array((images, (true, predicted)), shape=(classes, classes))


def images_counted(metrics: SplitMetrics, classes: int) -> int:
    """Return the number of images behind the metrics; multi-label has a matrix per class, each of which counts every image."""
    if metrics.map is not None and metrics.confusion is not None:
        return int(np.sum(metrics.confusion[0]))
    return int(confusion_of(metrics, classes).sum())


def mistakes(confusion_KK: csr_array) -> tuple[Counts, Counts, Counts]:
    """Return true class, predicted class and image count of each kind of mistake, the most frequent first."""
    cells = confusion_KK.tocoo()
    wrong = (cells.row != cells.col) & (cells.data > 0)
    true, predicted, images = cells.row[wrong], cells.col[wrong], cells.data[wrong]
    order = np.argsort(-images, kind="stable")
    return true[order], predicted[order], images[order]


def clustered_order(confusion_KK: Counts) -> list[int]:
    """Order the classes so that those confused with each other are side by side.

    Average linkage over ``1 - share of confusions``, leaves in optimal order (Bar-Joseph et al. 2001). The order stays
    unchanged if there are no mistakes.
    """
    counts = confusion_KK.astype(np.float64)
    np.fill_diagonal(counts, 0.0)
    if len(counts) < 3 or not counts.any():
        return list(range(len(counts)))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    support = np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    rates = counts / support
    distances = 1 - np.clip((rates + rates.T) / 2, 0, 1)
    np.fill_diagonal(distances, 0.0)
    return [int(k) for k in leaves_list(linkage(squareform(distances, checks=False), "average", optimal_ordering=True))]


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Test images of one class that were predicted as another.

    Args:
        true: True class.
        found: Predicted class.
        count: Number of images.
        share: Fraction of the images of the true class.
    """

    true: str
    found: str
    count: int
    share: float


def confused_pairs(confusion_KK: csr_array, classes: Sequence[str], most: int = 20) -> tuple[list[Mistakes], int]:
    """Return the most frequent mistakes, most frequent first, and the total number of kinds."""
    true, predicted, images = mistakes(confusion_KK)
    support = confusion_KK.sum(axis=1)
    pairs = [
        Mistakes(true=classes[row], found=classes[column], count=int(count), share=float(count / support[row]))
        for row, column, count in zip(true[:most], predicted[:most], images[:most], strict=True)
    ]
    return pairs, len(images)


def most_confused(confusion_KK: csr_array) -> list[int]:
    """Return the classes shown in the chart: all of them, or those with the most mistakes."""
    classes = confusion_KK.shape[0]
    if classes <= MOST_CLASSES:
        return list(range(classes))
    true, predicted, images = mistakes(confusion_KK)
    wrong = np.bincount(true, images, classes) + np.bincount(predicted, images, classes)
    return sorted(int(k) for k in np.argsort(-wrong, kind="stable")[:MOST_CLASSES])


def confusion_chart(confusion_KK: csr_array, classes: Sequence[str]) -> Markup:
    """Draw the matrix, each row shaded by its fraction of the true class; correct predictions and mistakes differ in colour."""
    chosen = most_confused(confusion_KK)
    inside = confusion_KK[chosen][:, chosen].toarray()
    order = clustered_order(inside)
    matrix = inside[np.ix_(order, order)]
    names = [_short(classes[chosen[k]]) for k in order]
    count = len(names)
    rates = matrix / np.maximum(confusion_KK.sum(axis=1)[[chosen[k] for k in order]][:, None], 1)
    cell_inches, letters = (0.3, 8.0) if count <= _WITH_COUNTS else (0.115, 6.5)
    if count <= _LARGE_CELLS:
        cell_inches, letters = 0.6, 9.0
    pixels = np.zeros((count, count, 4))
    diagonal = np.eye(count, dtype=bool)
    for mask, colour in ((diagonal, HIT), (~diagonal, MISS)):
        pixels[mask, :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    # a single mistake among hundreds must stay visible
    pixels[..., 3] = np.where(matrix > 0, 0.15 + 0.85 * np.sqrt(rates), 0.0)
    # letters are about 0.6 times as wide as high
    margin = 0.35 + max(map(len, names)) * letters * 0.6 / 72
    with drawing():
        figure = new_figure(margin + cell_inches * count, margin + cell_inches * count)
        axes = figure.subplots()
        axes.imshow(pixels, interpolation="none", aspect="equal")
        axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=letters)
        axes.set_yticks(range(count), names, fontsize=letters)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.tick_params(length=0)
        if count <= _WITH_COUNTS:
            for y, x in zip(*np.nonzero(matrix), strict=True):
                axes.text(x, y, str(matrix[y, x]), ha="center", va="center", fontsize=letters - 1)
        else:
            axes.set_xticks(np.arange(-0.5, count, 5), minor=True)
            axes.set_yticks(np.arange(-0.5, count, 5), minor=True)
            axes.grid(which="minor", color=GRID, linewidth=0.4)
            axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(GRID)
        return inline_svg(
            figure, name="confusion", description="Confusion matrix, true classes by predicted classes", fixed=True
        )


def _short(name: str) -> str:
    """Shorten a class name to fit beside the chart."""
    name = printable(name)
    return name if len(name) <= _LABEL_LETTERS else f"{name[: _LABEL_LETTERS - 1]}…"
