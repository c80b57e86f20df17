"""Clustering of images without labels by k-means and HDBSCAN (scikit-learn), with quality and typical members."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.embeddings.embeddings import NO_LABEL, Embeddings, EmbeddingsError, Rows
from finetune.embeddings.files import Features
from finetune.embeddings.search import METRICS
from finetune.embeddings.whitening import l2_normalize
from finetune.errors import UserError

# N = images, D = features, K = clusters

METHODS = ("kmeans", "hdbscan")
OUTLIER = -1
Show = Callable[[str], None]

# number of images that k-means is fitted on; the others join the nearest centre
FITTED_ON = 50_000
# distances between all pairs of more images would take hours
MOST_FOR_HDBSCAN = 20_000
# most images that a silhouette is computed from
_SILHOUETTE_OF = 5_000
_STARTS = 10
_ROWS = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class Clusters:
    """Assignment of images to clusters.

    Args:
        method: ``kmeans`` or ``hdbscan``.
        of_row: Cluster of each image, int64 (N,), numbered from 0 in descending order of size; -1 for an outlier of HDBSCAN.
        centres: Means of the members, float32 (K, D).
        distances: Distance of each image to the centre of its cluster, or to the nearest one for outliers, float32 (N,).
        margins: How much nearer the own centre is than the next one, in [-1, 1], 0 between two centres, float32 (N,).
        silhouette_by_count: Silhouette for each number of clusters that was tried.
    """

    method: str
    of_row: npt.NDArray[np.int64]
    centres: npt.NDArray[np.float32]
    distances: npt.NDArray[np.float32]
    margins: npt.NDArray[np.float32]
    silhouette_by_count: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.centres)

    def members(self, cluster: int) -> Rows:
        """Return the rows of a cluster, most typical first."""
        rows = np.flatnonzero(self.of_row == cluster)
        return rows[np.argsort(self.distances[rows], kind="stable")]

    def doubtful(self, cluster: int) -> Rows:
        """Return the rows of a cluster, those nearest to another cluster first."""
        rows = np.flatnonzero(self.of_row == cluster)
        return rows[np.argsort(self.margins[rows], kind="stable")]


def cluster(
    embeddings: Embeddings,
    *,
    method: str = "kmeans",
    clusters: int | None = None,
    most_clusters: int = 30,
    least_members: int = 5,
    metric: str = "cosine",
    seed: int = 0,
    show: Show = lambda line: None,
) -> Clusters:
    """Group images into clusters.

    Args:
        embeddings: Embeddings of the images.
        method: ``kmeans``, or ``hdbscan``, which determines the number of clusters itself and leaves outliers out.
        clusters: Number of clusters for k-means; None chooses the number, from 2 on, with the best silhouette.
        most_clusters: Largest number of clusters to try.
        least_members: Smallest number of members of an HDBSCAN cluster.
        metric: ``cosine`` scales features to length one first; ``l2`` leaves them unchanged.
        seed: Seed of starting points and samples.
        show: Function that shows a line to the user.

    Raises:
        UserError: A setting is out of range, or there are too many images for HDBSCAN.
    """
    count = len(embeddings)
    if method not in METHODS:
        raise UserError(f"--method {method}: must be one of {', '.join(METHODS)}.")
    if metric not in METRICS:
        raise UserError(f"--metric {metric}: must be one of {', '.join(METRICS)}.")
    if count < 3:
        raise EmbeddingsError(f"clusters need at least three images. There are {count}.")
    if clusters is not None and not 2 <= clusters < count:
        raise UserError(f"--clusters {clusters}: must be from 2 to one less than the number of images, {count - 1}.")
    if method == "hdbscan" and count > MOST_FOR_HDBSCAN:
        raise UserError(
            f"--method hdbscan: takes at most {MOST_FOR_HDBSCAN:,} images. There are {count:,}. Use --method kmeans."
        )
    draw = np.random.default_rng(seed)
    sample = np.sort(draw.choice(count, FITTED_ON, replace=False)) if count > FITTED_ON else np.arange(count)
    values = _ready(embeddings.features[sample], metric)
    tried: dict[int, float] = {}
    if method == "hdbscan":
        of_row = _hdbscan(values, least_members)
        centres = _means(values, of_row)
    else:
        if len(sample) < count:
            show(
                f"k-means: fitted on {len(sample):,} of {count:,} images, drawn at random; the others join the nearest centre"
            )
        if clusters is None:
            tried = _silhouettes(values, min(most_clusters, len(np.unique(values, axis=0)) - 1), seed)
            clusters = max(tried, key=lambda number: (tried[number], -number))
            show(
                f"clusters: {clusters}, the best silhouette ({tried[clusters]:.4f}) of 2 to {max(tried)}, each tried from one "
                f"start; the clusters below are the best of {_STARTS} starts, and their silhouette differs"
            )
        centres = _kmeans(values, clusters, starts=_STARTS, seed=seed)[1]
        of_row = np.zeros(0, np.int64)
    nearest, own, second = _distances(embeddings.features, centres, metric, of_row)
    of_row = nearest if method == "kmeans" else of_row
    of_row, centres = _by_size(of_row, centres)
    farther = np.maximum(np.maximum(own, second), np.finfo(np.float32).tiny)
    return Clusters(
        method=method,
        of_row=of_row,
        centres=centres,
        distances=own,
        margins=((second - own) / farther).astype(np.float32),
        silhouette_by_count=tried,
    )


@dataclass(frozen=True, kw_only=True)
class ClusterQuality:
    """The quality of clusters; outliers count as one cluster.

    Args:
        clusters: Number of clusters.
        outliers: Images in none of them.
        silhouette: Rousseeuw 1987, on a sample of at most 5,000 images; None for a single cluster.
        labelled: Images with a label; None where images have no labels or several, likewise below.
        nmi: Normalised mutual information of clusters and labels.
        ari: Adjusted Rand index (Hubert and Arabie 1985).
        purity: Fraction of images with the most frequent label of their cluster.
    """

    clusters: int
    outliers: int
    silhouette: float | None
    labelled: int | None = None
    nmi: float | None = None
    ari: float | None = None
    purity: float | None = None

    def in_words(self, *, outliers: bool) -> str:
        """Return the figures in words, with or without the outliers."""
        left_out = f", {self.outliers} outliers" if outliers else ""
        measured = (("silhouette", self.silhouette), ("nmi", self.nmi), ("ari", self.ari), ("purity", self.purity))
        figures = [f"{name} {value:.4f}" for name, value in measured if value is not None]
        return f"{self.clusters} clusters{left_out}" + (f": {', '.join(figures)}" if figures else "")


def quality(embeddings: Embeddings, clusters: Clusters, *, metric: str = "cosine", seed: int = 0) -> ClusterQuality:
    """Measure the quality of clusters, by themselves and against the labels."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    inside = np.flatnonzero(clusters.of_row != OUTLIER)
    scores = ClusterQuality(clusters=len(clusters), outliers=len(embeddings) - len(inside), silhouette=None)
    sample = inside
    if len(inside) > _SILHOUETTE_OF:
        sample = np.sort(np.random.default_rng(seed).choice(inside, _SILHOUETTE_OF, replace=False))
    if 2 <= len(np.unique(clusters.of_row[sample])) < len(sample):
        values = _ready(embeddings.features[sample], metric)
        scores = replace(scores, silhouette=float(silhouette_score(values, clusters.of_row[sample])))
    labelled = embeddings.labelled_rows()
    if not len(labelled) or embeddings.multi_label:
        return scores
    labels, groups = embeddings.labels[labelled], clusters.of_row[labelled]
    return replace(
        scores,
        labelled=len(labelled),
        nmi=float(normalized_mutual_info_score(labels, groups)),
        ari=float(adjusted_rand_score(labels, groups)),
        purity=purity(labels, groups),
    )


def purity(labels: npt.ArrayLike, clusters: npt.ArrayLike) -> float:
    """Return the fraction of images that have the most frequent label of their cluster.

    >>> purity([0, 0, 1, 1], [0, 0, 0, 1])
    0.75
    """
    _, rows = np.unique(np.asarray(clusters), return_inverse=True)
    _, columns = np.unique(np.asarray(labels), return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table, (rows, columns), 1)
    return float(table.max(1).sum() / len(rows))


def label_shares(embeddings: Embeddings, rows: Rows) -> list[tuple[str, float]]:
    """Return the labels of the given images with their fractions of the labelled ones, most frequent first."""
    labels = embeddings.labels[rows]
    labels = labels[labels != NO_LABEL]
    counts = np.bincount(labels, minlength=len(embeddings.classes))
    order = np.argsort(-counts, kind="stable")
    return [(embeddings.classes[at], float(counts[at] / len(labels))) for at in order if counts[at]]


def _ready(features: Features, metric: str) -> npt.NDArray[np.float32]:
    return l2_normalize(features) if metric == "cosine" else np.asarray(features, np.float32)


def _kmeans(values: npt.NDArray[np.float32], clusters: int, *, starts: int, seed: int) -> tuple[Any, Any]:
    from sklearn.cluster import KMeans

    fitted = KMeans(clusters, n_init=starts, random_state=seed).fit(values)
    return fitted.labels_, fitted.cluster_centers_.astype(np.float32)


def _silhouettes(values: npt.NDArray[np.float32], most: int, seed: int) -> dict[int, float]:
    from sklearn.metrics import silhouette_score

    if most < 2:
        raise EmbeddingsError("fewer than three images differ, so no number of clusters can be chosen.")
    rows = np.random.RandomState(seed).permutation(len(values))[:_SILHOUETTE_OF]
    silhouettes = {}
    for number in range(2, most + 1):
        labels, _ = _kmeans(values, number, starts=1, seed=seed)
        # beside far outliers in a cluster of their own, the others may all be in one
        if len(np.unique(labels[rows])) > 1:
            silhouettes[number] = float(silhouette_score(values[rows], labels[rows]))
    if not silhouettes:
        raise EmbeddingsError(
            "a few images lie far from all others, so no number of clusters can be chosen. Give --clusters."
        )
    return silhouettes


def _hdbscan(values: npt.NDArray[np.float32], least_members: int) -> npt.NDArray[np.int64]:
    from sklearn.cluster import HDBSCAN

    if least_members < 2:
        raise UserError(f"--least-members {least_members}: must be at least 2.")
    if least_members > len(values):
        raise UserError(f"--least-members {least_members}: must be at most {len(values)}, the number of images.")
    labels: npt.NDArray[np.int64] = HDBSCAN(min_cluster_size=least_members, copy=True).fit(values).labels_
    if not (labels >= 0).any():
        raise UserError(
            f"--method hdbscan: found no cluster of {least_members} images; all are outliers. Try a smaller "
            "--least-members, whitened embeddings of fewer directions, or --method kmeans."
        )
    return labels.astype(np.int64)


def _means(values: npt.NDArray[np.float32], of_row: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.stack([values[of_row == number].mean(0) for number in range(int(of_row.max()) + 1)]).astype(np.float32)


def _distances(
    features: Features, centres: npt.NDArray[np.float32], metric: str, of_row: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return each row's nearest centre, its distance to its own centre (else the nearest), and to the nearest other one."""
    nearest, own, other = [], [], []
    for start in range(0, len(features), _ROWS):
        values = _ready(features[start : start + _ROWS], metric).astype(np.float64)
        squares = (values**2).sum(1)[:, None] - 2 * values @ centres.T.astype(np.float64)
        distances = np.sqrt(np.maximum(squares + (centres.astype(np.float64) ** 2).sum(1), 0))
        first = distances.argmin(1)
        given = of_row[start : start + _ROWS]
        assigned = np.where(given >= 0, given, first) if len(given) else first
        at = np.arange(len(values))
        nearest.append(first)
        own.append(distances[at, assigned])
        distances[at, assigned] = np.inf
        other.append(distances.min(1) if distances.shape[1] > 1 else own[-1])
    return (
        np.concatenate(nearest),
        np.concatenate(own).astype(np.float32),
        np.concatenate(other).astype(np.float32),
    )


def _by_size(
    of_row: npt.NDArray[np.int64], centres: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Renumber the clusters from the largest on; drop clusters without members."""
    sizes = np.bincount(of_row[of_row >= 0], minlength=len(centres))
    order = [number for number in np.argsort(-sizes, kind="stable") if sizes[number]]
    place = np.full(len(centres) + 1, OUTLIER, np.int64)
    place[order] = np.arange(len(order))
    return place[of_row], centres[order]


def cluster_names(clusters: Clusters) -> Sequence[int]:
    """Return the numbers of all clusters, followed by that of the outliers if there are any."""
    return [*range(len(clusters)), *([OUTLIER] if (clusters.of_row == OUTLIER).any() else [])]
