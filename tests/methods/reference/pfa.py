"""PFA (Liu et al. 2021): FedAvg, then groups of clients by the sparsity of their activations, then FedAvg in each."""

from __future__ import annotations

from functools import partial

import numpy as np

from .descent import combine, descend, minus
from .linkage import clusters
from .model import Array, Tree
from .world import World


def sparsity(world: World, client: int, p: Tree, eps: float = 0.0) -> Array:
    """For each channel of the last activations the share of the client's training examples at which it is zero."""
    sums = np.zeros(len(world.first["head.weight"][0]))
    for row in world.x[client]:
        sums += np.abs(world.model.features(p, row[None])[0]) <= eps
    return np.asarray(sums / len(world.x[client]))


def nearest(s: Array, known: dict[int, Array], groups: list[set[int]]) -> int:
    """The group with the smallest mean distance."""
    return int(np.argmin([np.mean([np.linalg.norm(s - known[j]) for j in sorted(g)]) for g in groups]))


def pfa(
    world: World, *, lr: float, warm: int, count: int = 0, eps: float = 0.0
) -> tuple[Tree, list[Tree], list[set[int]], dict[int, Array]]:
    """(w_F, the groups' models, the groups, s of everybody who has been in a later round).

    Groups are made of those who are in round `warm` + 1. Who comes later receives w_F, and joins the nearest group,
    which takes its changes from its next turn on.
    """
    train = partial(descend, world, lr=lr)
    common, models = dict(world.first), list[Tree]()
    groups, known = list[set[int]](), dict[int, Array]()
    for number, turn in enumerate(world.turns, 1):
        if number <= warm:
            sent = [minus(train(i, common, turn.batches[i]["local"]), common) for i in turn.ids]
            n = np.array(world.counts(turn.ids))
            step = combine(sent, list(n / n.sum()))
            common = {k: v + step[k] for k, v in common.items()}
            continue
        if not groups:
            known = {i: sparsity(world, i, common, eps) for i in turn.ids}
            s = np.stack([known[i] for i in turn.ids])
            apart = np.linalg.norm(s[:, None] - s[None], axis=2)
            groups = [{turn.ids[j] for j in part} for part in clusters(apart, count=count)]
            models = [dict(common) for _ in groups]
        late = [i for i in turn.ids if i not in known]
        where = {i: c for c, g in enumerate(groups) for i in g}
        for c, model in enumerate(models):
            here = [i for i in turn.ids if where.get(i) == c]
            if here:
                n = np.array(world.counts(here))
                sent = [minus(train(i, model, turn.batches[i]["local"]), model) for i in here]
                step = combine(sent, list(n / n.sum()))
                models[c] = {k: v + step[k] for k, v in model.items()}
        before = (dict(known), [set(g) for g in groups])
        for i in late:
            known[i] = sparsity(world, i, common, eps)
            groups[nearest(known[i], *before)].add(i)
    return common, models, groups, known
