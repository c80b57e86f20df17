"""Retrieval quality, or how well neighbours agree with labels: recall at k and mean average precision."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.index import SPLITS
from finetune.embeddings.embeddings import Embeddings, Rows
from finetune.embeddings.search import nearest
from finetune.embeddings.whitening import l2_normalize
from finetune.errors import UserError
from finetune.plain import Json

# largest number of scores in memory at once
_CELLS = 16_000_000

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")


def queries_and_rest(embeddings: Embeddings, split: str | None = None) -> tuple[Rows, Rows, str]:
    """Choose the query images and the images to search, and describe both in words.

    Test images are searched for among those of the other splits, as a new image is among known ones. Without a test split,
    each image is searched for among all others. A split given by name is searched for in the other splits.

    Raises:
        UserError: The split holds no labelled image.
    """
    labelled = embeddings.labelled_rows()
    splits = embeddings.splits[labelled]
    if split is None and not ((splits == TEST).any() and (splits != TEST).any()):
        return labelled, labelled, "each image among all others"
    name = split or "test"
    queries = labelled[splits == SPLITS.index(name)]
    rest = labelled[splits != SPLITS.index(name)]
    if not len(queries) or not len(rest):
        raise UserError(f"--split {name}: {len(queries)} labelled images in it, {len(rest)} in others. Both need some.")
    return queries, rest, f"{name} images among those of the other splits"


@dataclass(frozen=True, kw_only=True)
class RetrievalQuality:
    """The quality of a ranking of images.

    Args:
        recall: By k, fraction of queries with an image of their class among the first k (Jegou et al. 2011, Musgrave et al.
            2020).
        map: Precision at the rank of each image of the class, averaged over these and then over queries.
        queries: Number of queries.
        among: Number of images that were searched.
        alone: Queries without another image of their class, which are left out.
        metric: ``cosine`` or ``l2``.
    """

    recall: Mapping[int, float]
    map: float
    queries: int
    among: int
    alone: int
    metric: str

    def to_plain(self) -> dict[str, Json]:
        """Return JSON values, with ``recall@k`` for each k."""
        recall = {f"recall@{k}": value for k, value in self.recall.items()}
        rest: dict[str, Json] = {
            "queries": self.queries,
            "among": self.among,
            "alone": self.alone,
            "metric": self.metric,
        }
        return {**recall, "map": self.map, **rest}


def retrieval_quality(
    embeddings: Embeddings,
    *,
    queries: Rows,
    among: Rows,
    ks: tuple[int, ...] = (1, 5, 10),
    metric: str = "cosine",
) -> RetrievalQuality:
    """Measure the quality of the ranking of some images for others.

    Args:
        embeddings: Embeddings with labels.
        queries: Rows of the query images.
        among: Rows to search; a query is excluded from its own results.
        ks: Values of k at which recall is measured.
        metric: ``cosine`` or ``l2``.

    Raises:
        UserError: There are no labels, or no query has another image of its class.
    """
    embeddings.require_labels("retrieval quality")
    labels = embeddings.labels
    itself = np.isin(queries, among)
    sizes = np.bincount(labels[among], minlength=len(embeddings.classes))
    others = sizes[labels[queries]] - itself
    kept = queries[others > 0]
    if not len(kept):
        raise UserError("retrieval quality: no query has another image of its class to find.")
    itself, others = itself[others > 0], others[others > 0]
    neighbours = nearest(
        embeddings.features,
        embeddings.features[kept],
        min(max(ks), len(among)),
        metric=metric,
        leave_out=np.where(itself, kept, -1),
        among=among,
    )
    same = (labels[np.maximum(neighbours.rows, 0)] == labels[kept][:, None]) & (neighbours.rows >= 0)
    return RetrievalQuality(
        recall={k: float(same[:, :k].any(1).mean()) for k in ks},
        map=float(np.mean(_average_precisions(embeddings, kept, among, others, metric))),
        queries=len(kept),
        among=len(among),
        alone=len(queries) - len(kept),
        metric=metric,
    )


def _average_precisions(embeddings: Embeddings, queries: Rows, among: Rows, relevant: Rows, metric: str) -> list[float]:
    values = _ready(embeddings.features[among], metric)
    labels = embeddings.labels[among]
    squares = (values**2).sum(1)
    means = []
    step = max(1, _CELLS // len(among))
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        query_features = _ready(embeddings.features[rows], metric)
        scores = 2 * query_features @ values.T - squares
        scores[rows[:, None] == among] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        hits = (labels[order] == embeddings.labels[rows][:, None]) & np.isfinite(np.take_along_axis(scores, order, 1))
        precision = np.cumsum(hits, 1) / np.arange(1, len(among) + 1)
        means += ((precision * hits).sum(1) / relevant[start : start + step]).tolist()
    return means


def _ready(features: Any, metric: str) -> Any:
    return l2_normalize(features) if metric == "cosine" else np.asarray(features, np.float32)
