"""Images of one set that look alike to the network: groups of near-duplicates."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from finetune.data.progress import Progress
from finetune.embeddings.embeddings import Features, Rows
from finetune.embeddings.search import Distances, within

_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class DuplicateGroup:
    """Images connected by distances within a radius.

    Args:
        rows: Ascending.
        distances: Of each, to the nearest other one of the group.
    """

    rows: Rows
    distances: Distances


def near_duplicates(features: Features, radius: float, *, metric: str = "cosine") -> list[DuplicateGroup]:
    """Groups of two and more images, the closest group first.

    An image belongs to a group when it is within the radius of one of its members; so the ends of a long group may be
    further apart than the radius.

    Raises:
        UserError: The radius or the metric is out of range.
    """
    count = len(features)
    nearest = np.full(count, np.inf)
    ones, others = [], []
    progress = Progress("comparing images", total=count)
    for start in range(0, count, _ROWS):
        part = features[start : start + _ROWS]
        for at, (rows, distances) in enumerate(within(features, part, radius, metric=metric)):
            own = start + at
            apart = distances[rows != own]
            if len(apart):
                nearest[own] = apart.min()
                later = rows[rows > own]
                ones.append(np.full(len(later), own))
                others.append(later)
        progress.advance(len(part))
    progress.close()
    if not ones:
        return []
    left, right = np.concatenate(ones), np.concatenate(others)
    graph = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    members = np.flatnonzero(np.isfinite(nearest))
    order = members[np.argsort(group[members], kind="stable")]
    pieces = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    groups = [DuplicateGroup(rows=rows, distances=nearest[rows]) for rows in pieces]
    return sorted(groups, key=lambda alike: (float(alike.distances.min()), int(alike.rows[0])))
