"""Labels that are probably wrong: images whose neighbours have another one."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.embeddings.embeddings import NO_LABEL, Embeddings, Rows
from finetune.embeddings.search import nearest
from finetune.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelErrors:
    """How much the neighbours of each labelled image speak against its label.

    Args:
        rows: int64 (M,), the labelled images, the most doubtful first.
        doubts: float64 (M,), from -1 to 1: the weighted share of neighbours with the label that most of them have other
            than the image's, less the share of those with the image's own.
        suggested: int32 (M,), the label that most neighbours have other than the image's own.
        agreeing: int64 (M,), number of neighbours with the image's own label.
        neighbours: Of each image.
    """

    rows: Rows
    doubts: npt.NDArray[np.float64]
    suggested: npt.NDArray[np.int32]
    agreeing: npt.NDArray[np.int64]
    neighbours: int

    @property
    def likely(self) -> int:
        """How many at the beginning of the list have neighbours that all say otherwise, or nearly: doubt above a half."""
        return int((self.doubts > 0.5).sum())


def find_label_errors(embeddings: Embeddings, *, neighbours: int = 10, metric: str = "cosine") -> LabelErrors:
    """Rank labelled images by how much their nearest neighbours contradict their label.

    Each neighbour counts in proportion to its nearness: one at the distance of the farthest counts next to nothing, as in
    the weighted nearest-neighbour rule (Dudani 1976), with a floor so that equally distant ones count equally.

    Args:
        embeddings: With labels, one each.
        neighbours: Looked at for each image.
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
    found = nearest(
        embeddings.features,
        embeddings.features[rows],
        neighbours,
        metric=metric,
        leave_out=rows,
        among=None if len(rows) == len(embeddings) else rows,
    )
    labels = embeddings.labels[found.rows]
    assert (labels != NO_LABEL).all(), "neighbours are labelled"
    weights = _weights(found.distances)
    shares = np.zeros((len(rows), len(embeddings.classes)))
    np.add.at(shares, (np.arange(len(rows))[:, None], labels), weights)
    own = embeddings.labels[rows]
    at = np.arange(len(rows))
    support = shares[at, own]
    shares[at, own] = -1
    suggested = shares.argmax(1)
    doubts = shares[at, suggested] - support
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
    """Weights of the neighbours of each image, their sum one."""
    near, far = distances[:, :1], distances[:, -1:]
    spread = np.where(far > near, far - near, 1)
    weights = 0.5 + 0.5 * (far - distances) / spread
    scaled: npt.NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return scaled
