"""CFL (Sattler et al. 2021): clusters are split where their mean change stalls, by all bipartitions."""

from __future__ import annotations

from itertools import product

import numpy as np

from .descent import combine, descend, minus
from .model import Array, Tree
from .world import World


def best(similar: Array) -> tuple[float, set[frozenset[int]]]:
    """The least largest similarity across, over all bipartitions, and the parts."""
    m, found = len(similar), (np.inf, set[frozenset[int]]())
    for side in product([False, True], repeat=m - 1):
        part = np.array([False, *side])
        if part.any() and similar[part][:, ~part].max() < found[0]:
            found = (similar[part][:, ~part].max(), {frozenset(np.flatnonzero(p).tolist()) for p in (part, ~part)})
    return found


def cfl(world: World, lr: float, eps1: float, eps2: float, after: int) -> tuple[dict[int, Tree], list[set[int]]]:
    """(the model of every client, the clusters) after all rounds, with the last change of those who are absent."""
    net = world.model
    names = net.trainable(world.first)
    clusters, models = [set(range(world.population))], [dict(world.first)]
    last: dict[int, Array] = {}
    for number, turn in enumerate(world.turns, 1):
        where = {i: c for c, members in enumerate(clusters) for i in members}
        change = {
            i: minus(descend(world, i, models[where[i]], turn.batches[i]["local"], lr=lr), models[where[i]])
            for i in turn.ids
        }
        last |= {i: np.concatenate([v[k].ravel() for k in names]) for i, v in change.items()}
        for c in range(len(clusters) if number > after else 0):
            known = sorted(i for i in clusters[c] if i in last)
            n = np.array(world.counts(known))
            moved = np.array([last[i] for i in known])
            if (
                len(known) < 3
                or np.linalg.norm(n @ moved / n.sum()) >= eps1
                or np.linalg.norm(moved, axis=1).max() <= eps2
            ):
                continue
            unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
            parts = sorted(([known[j] for j in p] for p in best(unit @ unit.T)[1]), key=len)
            if len(parts[0]) == len(parts[1]):  # who leaves is then a matter of names, which nothing depends on
                parts.sort(key=lambda p: known[0] in p)
            clusters[c] -= set(parts[0])
            clusters.append(set(parts[0]))
            models.append(dict(models[c]))
        for c, members in enumerate(clusters):
            here = [i for i in turn.ids if i in members]
            if here:
                n = np.array(world.counts(here))
                step = combine([change[i] for i in here], list(n / n.sum()))
                models[c] = {k: v + step[k] for k, v in models[c].items()}
    return {i: models[c] for c, members in enumerate(clusters) for i in members}, clusters
