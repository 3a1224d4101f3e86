"""Average-linkage clustering, by the definition: the two sets whose members are nearest on average are joined."""

from __future__ import annotations

import numpy as np

from .model import Array


def merges(distance: Array) -> tuple[list[list[set[int]]], list[float]]:
    """(the partition before each merge and after the last, the height of each merge)."""
    parts = [{i} for i in range(len(distance))]
    steps, heights = [parts], []
    while len(parts) > 1:
        pairs = [(a, b) for a in range(len(parts)) for b in range(a + 1, len(parts))]

        def between(pair: tuple[int, int], parts: list[set[int]] = parts) -> float:
            return float(np.mean([distance[i, j] for i in parts[pair[0]] for j in parts[pair[1]]]))

        a, b = min(pairs, key=between)
        heights.append(between((a, b)))
        parts = [p for k, p in enumerate(parts) if k not in (a, b)] + [parts[a] | parts[b]]
        steps.append(parts)
    return steps, heights


def clusters(distance: Array, gap_min: float = 0.0, count: int = 0) -> list[set[int]]:
    """`count` parts, or those at the largest gap between successive heights; one part if no gap is above `gap_min`."""
    steps, heights = merges(distance)
    if count:
        return next(s for s in steps if len(s) == count)
    gaps = np.diff(heights)
    if not len(gaps) or gaps.max() <= gap_min:
        return steps[-1]
    return steps[int(np.argmax(gaps)) + 1]
