"""CFL against its algorithm in numpy; its two halves against all bipartitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bridge import answer, close, run
from reference.cfl import best
from reference.cfl import cfl as ref_cfl
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.cfl import cfl, halves
from weft.methods.fedavg import fedavg

RUNS = [
    pytest.param(loop, 0, Mlp, id="loop"),
    pytest.param(Batched(), 1, Mlp, id="batched"),
    pytest.param(Batched(2), 2, BnMlp, id="chunked-norm"),
]


@pytest.mark.parametrize("m", [2, 3, 5, 8])
def test_halves_are_the_best_of_all_bipartitions(m: int) -> None:
    rng = np.random.default_rng(m)
    for _ in range(20):
        unit = rng.normal(size=(m, 3))
        similar = unit @ unit.T
        apart = halves(torch.from_numpy(similar)).numpy()
        assert {frozenset(np.flatnonzero(p).tolist()) for p in (apart, ~apart)} == best(similar)[1]


@pytest.mark.parametrize(("eps1", "eps2", "after"), [(1e9, 0.0, 1), (0.45, 0.6, 2), (0.0, 0.0, 0)], ids=str)
@pytest.mark.parametrize(("execute", "seed", "net"), RUNS)
def test_equals_its_algorithm(eps1: float, eps2: float, after: int, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, clients=7, rounds=5, model=net)
    own, clusters = ref_cfl(world, 0.1, eps1, eps2, after)
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
