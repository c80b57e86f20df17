"""Two-dimensional maps of the test images' embeddings by PCA and by t-SNE (van der Maaten & Hinton 2008)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from finetune.report.figures import INK, PAPER, drawing, inline_svg, new_figure
from finetune.terminal import printable

# with fewer images no map is drawn
FEWEST = 10
# letters of a name in a legend
_LETTERS = 20
# up to this many classes have a legend
_LISTED = 12
# up to this many classes are named in the chart
_NAMED = 30
_KEPT_DIMENSIONS = 50

Floats = npt.NDArray[np.floating]


def projections(embeddings_ND: Floats, *, seed: int = 0) -> dict[str, Floats]:
    """Return two coordinates per image, keyed by method; the same arguments give the same map."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = embeddings_ND - embeddings_ND.mean(axis=0)
    if not centred.any():
        # all points coincide: PCA has no direction
        return dict.fromkeys(("PCA", "t-SNE"), np.zeros((len(centred), 2)))
    kept = min(_KEPT_DIMENSIONS, *centred.shape)
    # reduce the dimensions first: distances hardly change, and t-SNE finds neighbours much faster
    reduced = PCA(kept, svd_solver="randomized" if kept < min(centred.shape) else "full", random_state=seed)
    points = reduced.fit_transform(centred)
    points = np.pad(points, ((0, 0), (0, max(2 - points.shape[1], 0))))
    perplexity = min(30.0, (len(points) - 1) / 3)
    # avoids a division by zero where the first direction is constant
    start = points[:, :2] / max(float(points[:, 0].std()), 1e-12) * 1e-4
    neighbours = TSNE(2, perplexity=perplexity, init=start, random_state=seed, max_iter=500)
    return {"PCA": points[:, :2], "t-SNE": neighbours.fit_transform(points)}


def map_chart(
    points_N2: Floats, *, method: str, groups: npt.NDArray[np.int64], names: Sequence[str], wrong: npt.NDArray[np.bool_]
) -> Markup:
    """Draw a map coloured by class, with a ring around each misclassified image.

    Args:
        points_N2: Coordinates of the images.
        method: Name of the projection method.
        groups: Class of each image.
        names: Class names.
        wrong: Whether each image was misclassified.
    """
    shown = [int(k) for k in np.unique(groups)]
    with drawing():
        listed = len(shown) <= _LISTED
        figure = new_figure(4.1, 3.8 + (0.2 * -(-len(shown) // 3) if listed else 0.0))
        axes = figure.subplots()
        points, labels = [], []
        for place, k in enumerate(shown):
            members = points_N2[groups == k]
            name, colour = printable(names[k]), _colour(place, len(shown))
            name = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
            points.append(axes.scatter(members[:, 0], members[:, 1], s=9, color=colour, linewidths=0))
            # of itself Matplotlib leaves out names that begin with an underscore
            labels.append(f"\u200b{name}" if name.startswith("_") else name)
        if listed:
            # below the map, so that it covers no point
            figure.legend(points, labels, loc="outside lower center", ncols=3, fontsize=8, markerscale=2)
        ringed = points_N2[wrong]
        axes.scatter(ringed[:, 0], ringed[:, 1], s=26, facecolors="none", edgecolors=INK, linewidths=0.7)
        if _LISTED < len(shown) <= _NAMED:
            for k in shown:
                x, y = np.median(points_N2[groups == k], axis=0)
                box: dict[str, str | float] = {"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 1}
                axes.text(x, y, printable(names[k])[:20], fontsize=8, ha="center", va="center", bbox=box)
        axes.set_title(method)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        name = f"map-{method.lower()}"
        return inline_svg(figure, name=name, description=f"Map of the test images by {method}, coloured by class")


def _colour(place: int, count: int) -> tuple[float, float, float]:
    """Return a hue for a class, far from its neighbours' in the list, and readable in the light and the dark theme."""
    import colorsys

    hue = place / count if count <= 6 else (place * 0.618034) % 1.0
    return colorsys.hls_to_rgb(hue, 0.45 + 0.12 * (place % 2), 0.62)
