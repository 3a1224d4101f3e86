"""CFL against its algorithm in numpy; its two halves against all bipartitions."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from bridge import answer, close, run
from reference.descent import combine, descend, minus
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.cfl import cfl, halves
from weft.methods.fedavg import fedavg

Array = np.ndarray
RUNS = [
    pytest.param(loop, 0, Mlp, id="loop"),
    pytest.param(Batched(), 1, Mlp, id="batched"),
    pytest.param(Batched(2), 2, BnMlp, id="chunked-norm"),
]


def best(similar: Array) -> tuple[float, set[frozenset[int]]]:
    """The least largest similarity across, over all bipartitions, and the parts."""
    m, found = len(similar), (np.inf, set[frozenset[int]]())
    for side in product([False, True], repeat=m - 1):
        part = np.array([False, *side])
        if part.any() and similar[part][:, ~part].max() < found[0]:
            found = (similar[part][:, ~part].max(), {frozenset(np.flatnonzero(p).tolist()) for p in (part, ~part)})
    return found


@pytest.mark.parametrize("m", [2, 3, 5, 8])
def test_halves_are_the_best_of_all_bipartitions(m: int) -> None:
    rng = np.random.default_rng(m)
    for _ in range(20):
        unit = rng.normal(size=(m, 3))
        similar = unit @ unit.T
        apart = halves(torch.from_numpy(similar)).numpy()
        assert {frozenset(np.flatnonzero(p).tolist()) for p in (apart, ~apart)} == best(similar)[1]


def stepped(
    world: World, lr: float, eps1: float, eps2: float, after: int
) -> tuple[dict[int, dict[str, Array]], list[set[int]]]:
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


@pytest.mark.parametrize(("eps1", "eps2", "after"), [(1e9, 0.0, 1), (0.45, 0.6, 2), (0.0, 0.0, 0)], ids=str)
@pytest.mark.parametrize(("execute", "seed", "net"), RUNS)
def test_equals_its_algorithm(eps1: float, eps2: float, after: int, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, clients=7, rounds=5, model=net)
    own, clusters = stepped(world, 0.1, eps1, eps2, after)
    fed = run(world, cfl(lr=0.1, eps1=eps1, eps2=eps2, after=after), execute)
    assert (len(clusters) > 1) == (eps1 > 0)
    member = fed.server.member.expand(world.population)
    assert {frozenset(np.flatnonzero(member == c).tolist()) for c in member.unique()} == set(map(frozenset, clusters))
    for i, tree in own.items():
        close({k: v[int(member[i])] for k, v in fed.server.model.items()}, tree)
        assert abs(answer(fed, world, i) - net.logits(tree, world.x[i])).max() < 1e-9


def test_clients_with_contrary_labels_part() -> None:
    world = make_world(3, clients=8, rounds=20)
    rng, y = np.random.default_rng(0), [np.arange(len(v)) % 4 for v in world.y]
    x = [rng.normal(size=(len(v), 3)) + 4 * np.eye(4)[v][:, :3] for v in y]
    world = replace(world, x=x, y=[(v + 2 * (i % 2)) % 4 for i, v in enumerate(y)])
    fed = run(world, cfl(lr=0.1, eps1=0.3, eps2=0.3, after=3), Batched())
    odd, even = (set(fed.server.member[p::2].tolist()) for p in (1, 0))
    assert not odd & even


def test_gamma_asks_for_a_distance() -> None:
    world = make_world(0, clients=7, rounds=5)
    fed = run(world, cfl(lr=0.1, eps1=1e9, eps2=0.0, after=1, gamma=1.0), loop)
    same = run(world, fedavg(lr=0.1), loop).server.model
    assert len(fed.server.model["head.bias"]) == 1
    close({k: v[0] for k, v in fed.server.model.items()}, {k: v.numpy() for k, v in same.items()}, 1e-12)
