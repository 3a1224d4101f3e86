"""Clusters by average linkage (Sokal, Michener 1958), with a number of clusters that follows from the distances."""

from __future__ import annotations

import torch
from torch import Tensor


def clusters(distance: Tensor, gap_min: float = 0.0, count: int = 0) -> Tensor:
    """The cluster of each of n things, int64 [n], from their distances [n, n]; clusters are numbered as they appear.

    The two clusters whose members are nearest on average are joined, again and again. The result is what was there
    before the merge whose height is the most above the one before, if by more than `gap_min`; else all are one.
    `count`: so many clusters instead, as far as there are things.
    """
    n = len(distance)
    between = distance.detach().double().cpu().clone().fill_diagonal_(torch.inf)
    size, label = torch.ones(n, dtype=torch.float64), torch.arange(n)
    heights, labels = [], [label]
    for _ in range(n - 1):
        a, b = sorted(divmod(int(between.argmin()), n))
        heights.append(float(between[a, b]))
        joined = (size[a] * between[a] + size[b] * between[b]) / (size[a] + size[b])
        joined[a] = joined[b] = torch.inf
        between[a], between[:, a] = joined, joined
        between[b], between[:, b] = torch.inf, torch.inf
        size[a] += size[b]
        label = torch.where(label == b, a, label)
        labels.append(label)
    gaps = torch.tensor(heights).diff()
    merges = n - 1
    if count:
        merges = max(0, n - count)
    elif len(gaps) and gaps.max() > gap_min:
        merges = int(gaps.argmax()) + 1
    numbers: Tensor = torch.unique(labels[merges], return_inverse=True)[1]
    return numbers.to(distance.device)
