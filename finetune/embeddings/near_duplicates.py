"""Near-duplicates: groups of images in one set that look alike to the network."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from finetune.data.progress import Progress
from finetune.embeddings.embeddings import Rows
from finetune.embeddings.files import Features
from finetune.embeddings.search import Distances, within

_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class DuplicateGroup:
    """Images connected by distances within a radius.

    Args:
        rows: Rows of the images, ascending.
        distances: Distance of each image to the nearest other one of the group.
    """

    rows: Rows
    distances: Distances


def near_duplicates(features: Features, radius: float, *, metric: str = "cosine") -> list[DuplicateGroup]:
    """Return groups of two or more images, the closest group first.

    An image belongs to a group if it is within the radius of any member, so the ends of a long group may be further apart
    than the radius.

    Raises:
        UserError: The radius or the metric is out of range.
    """
    count = len(features)
    nearest = np.full(count, np.inf)
    # edges of the graph of all pairs within the radius
    ones, others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    progress = Progress("comparing images", total=count)
    for start in range(0, count, _ROWS):
        part = features[start : start + _ROWS]
        for own, (rows, distances) in enumerate(within(features, part, radius, metric=metric), start):
            nearest[own] = distances[rows != own].min(initial=np.inf)
            others.append(rows[rows > own])
            ones.append(np.full(len(others[-1]), own))
        progress.advance(len(part))
    progress.close()
    edges = (np.concatenate(ones), np.concatenate(others))
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(count, count))
    _, group_of_row = connected_components(graph, directed=False)
    members = np.flatnonzero(np.isfinite(nearest))
    members = members[np.argsort(group_of_row[members], kind="stable")]
    ends = np.flatnonzero(np.diff(group_of_row[members])) + 1
    groups = [DuplicateGroup(rows=rows, distances=nearest[rows]) for rows in np.split(members, ends) if len(rows)]
    return sorted(groups, key=lambda group: (float(group.distances.min()), int(group.rows[0])))
