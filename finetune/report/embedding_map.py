"""The test images on a plane: their embeddings by PCA, and by t-SNE (van der Maaten & Hinton 2008)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from finetune.report.figures import INK, PAPER, drawing, inline_svg, new_figure
from finetune.terminal import printable

# fewer images make no map
FEWEST = 10
# up to so many classes are named in the picture
_NAMED = 30
_KEPT_DIMENSIONS = 50

Floats = npt.NDArray[np.floating]


def projections(embeddings_ND: Floats, *, seed: int = 0) -> dict[str, Floats]:
    """Two coordinates for each image, by the name of the method; the same call gives the same map."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = embeddings_ND - embeddings_ND.mean(axis=0)
    if not centred.any():
        # all in one place: there is no direction to look from
        return dict.fromkeys(("PCA", "t-SNE"), np.zeros((len(centred), 2)))
    kept = min(_KEPT_DIMENSIONS, *centred.shape)
    # first to few dimensions: distances hardly change, and t-SNE's neighbours are found much faster
    reduced = PCA(kept, svd_solver="randomized" if kept < min(centred.shape) else "full", random_state=seed)
    points = reduced.fit_transform(centred)
    points = np.pad(points, ((0, 0), (0, max(2 - points.shape[1], 0))))
    perplexity = min(30.0, (len(points) - 1) / 3)
    # a constant direction would be divided by zero
    start = points[:, :2] / max(float(points[:, 0].std()), 1e-12) * 1e-4
    neighbours = TSNE(2, perplexity=perplexity, init=start, random_state=seed, max_iter=500)
    return {"PCA": points[:, :2], "t-SNE": neighbours.fit_transform(points)}


def map_chart(
    points_N2: Floats, *, method: str, groups: npt.NDArray[np.int64], names: Sequence[str], wrong: npt.NDArray[np.bool_]
) -> Markup:
    """A map coloured by class, with a ring around images that were classified wrong.

    Args:
        points_N2: Coordinates.
        method: How they came about.
        groups: Class of each image.
        names: Class names.
        wrong: Whether each was classified wrong.
    """
    shown = [int(k) for k in np.unique(groups)]
    with drawing():
        figure = new_figure(4.1, 3.8)
        axes = figure.subplots()
        for place, k in enumerate(shown):
            mine = points_N2[groups == k]
            axes.scatter(mine[:, 0], mine[:, 1], s=9, color=_colour(place, len(shown)), linewidths=0)
        ringed = points_N2[wrong]
        axes.scatter(ringed[:, 0], ringed[:, 1], s=26, facecolors="none", edgecolors=INK, linewidths=0.7)
        if len(shown) <= _NAMED:
            for k in shown:
                x, y = np.median(points_N2[groups == k], axis=0)
                box: dict[str, Any] = {"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 1}
                axes.text(x, y, printable(names[k])[:20], fontsize=8, ha="center", va="center", bbox=box)
        axes.set_title(method)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        name = f"map-{method.lower()}"
        return inline_svg(figure, name=name, says=f"Map of the test images by {method}, coloured by class")


def _colour(place: int, count: int) -> tuple[float, float, float]:
    """Hues all round, neighbours in the list of classes far apart, neither too light nor too dark for either theme."""
    import colorsys

    hue = place / count if count <= 6 else (place * 0.618034) % 1.0
    return colorsys.hls_to_rgb(hue, 0.45 + 0.12 * (place % 2), 0.62)
