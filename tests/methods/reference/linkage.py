"""Clusters by average linkage, from SciPy's dendrogram."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

from .model import Array


def clusters(distance: Array, gap_min: float = 0.0, count: int = 0) -> list[set[int]]:
    """`count` parts, or those before the merge that is highest above the one before, by over `gap_min`; else one."""
    n = len(distance)
    if n == 1:
        return [{0}]
    tree = linkage(squareform(distance, checks=False), "average")
    jumps = np.diff(tree[:, 2])
    if not count:
        count = n - 1 - int(np.argmax(jumps)) if len(jumps) and jumps.max() > gap_min else 1
    labels = cut_tree(tree, n_clusters=min(count, n))[:, 0]
    return [set(np.flatnonzero(labels == c).tolist()) for c in range(labels.max() + 1)]
