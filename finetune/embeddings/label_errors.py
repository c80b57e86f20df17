"""Likely label errors: images whose neighbours have another label."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.embeddings.embeddings import NO_LABEL, Embeddings, Rows
from finetune.embeddings.search import nearest
from finetune.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelErrors:
    """How strongly the neighbours of each labelled image contradict its label.

    Args:
        rows: Labelled images, most doubtful first, int64 (M,).
        doubts: Weighted fraction of the neighbours with the most frequent other label, less the fraction of those with the
            image's own label, in [-1, 1], float64 (M,).
        suggested: Most frequent label of the neighbours other than the image's own, int32 (M,).
        agreeing: Number of neighbours with the image's own label, int64 (M,).
        neighbours: Number of neighbours of each image.
    """

    rows: Rows
    doubts: npt.NDArray[np.float64]
    suggested: npt.NDArray[np.int32]
    agreeing: npt.NDArray[np.int64]
    neighbours: int

    @property
    def likely(self) -> int:
        """Number of images, at the start of the list, whose neighbours almost all have another label: doubt above one half."""
        return int((self.doubts > 0.5).sum())


def find_label_errors(embeddings: Embeddings, *, neighbours: int = 10, metric: str = "cosine") -> LabelErrors:
    """Rank labelled images by how strongly their nearest neighbours contradict their label.

    Nearer neighbours count more: the weight falls linearly from the nearest to the farthest neighbour, as in the weighted
    nearest-neighbour rule (Dudani 1976), with a floor so that equally distant neighbours count equally.

    Args:
        embeddings: Embeddings with one label per image.
        neighbours: Number of neighbours of each image to compare with.
        metric: ``cosine`` or ``l2``.

    Raises:
        UserError: There are no labels, or fewer images than neighbours.
    """
    embeddings.require_labels("likely label errors")
    rows = embeddings.labelled_rows()
    if not 1 <= neighbours < len(rows):
        raise UserError(
            f"--neighbours {neighbours}: must be from 1 to one less than the labelled images, {len(rows) - 1}."
        )
    neighbourhood = nearest(
        embeddings.features,
        embeddings.features[rows],
        neighbours,
        metric=metric,
        leave_out=rows,
        among=None if len(rows) == len(embeddings) else rows,
    )
    labels = embeddings.labels[neighbourhood.rows]
    assert (labels != NO_LABEL).all(), "neighbours are labelled"
    weights = _weights(neighbourhood.distances)
    fractions = np.zeros((len(rows), len(embeddings.classes)))
    np.add.at(fractions, (np.arange(len(rows))[:, None], labels), weights)
    own = embeddings.labels[rows]
    at = np.arange(len(rows))
    support = fractions[at, own]
    fractions[at, own] = -1
    suggested = fractions.argmax(1)
    doubts = fractions[at, suggested] - support
    agreeing = (labels == own[:, None]).sum(1)
    order = np.lexsort((rows, -doubts.round(12)))
    return LabelErrors(
        rows=rows[order],
        doubts=doubts[order],
        suggested=suggested[order].astype(np.int32),
        agreeing=agreeing[order],
        neighbours=neighbours,
    )


def _weights(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weights of each image's neighbours; they sum to one."""
    near, far = distances[:, :1], distances[:, -1:]
    spread = np.where(far > near, far - near, 1)
    weights = 0.5 + 0.5 * (far - distances) / spread
    scaled: npt.NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return scaled
