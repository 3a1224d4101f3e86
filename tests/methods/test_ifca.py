"""IFCA: one cluster is FedAvg, contrary clients part, and a model that nobody chose stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bridge import answer, close, run
from reference.ifca import ifca as ref_ifca
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core import tune
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedavg import fedavg
from weft.methods.ifca import ifca
from weft.server import plain

RUNS = [
    pytest.param(loop, 0, Mlp, id="loop"),
    pytest.param(Batched(), 1, Mlp, id="batched"),
    pytest.param(Batched(2), 2, BnMlp, id="chunked-norm"),
]


@pytest.mark.parametrize(("execute", "seed", "net"), RUNS)
def test_equals_algorithm_1(execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, clients=6, rounds=4, model=net)
    fed = run(world, ifca(lr=0.3, clusters=3), execute)
    begun = run(replace(world, turns=[]), ifca(clusters=3), loop).server.models
    first = [{k: v[j].numpy() for k, v in begun.items()} for j in range(3)]
    close({k: torch.from_numpy(v) for k, v in first[0].items()}, {k: world.first[k] for k in first[0]})
    assert not np.allclose(first[1]["head.weight"], first[2]["head.weight"])
    models, taken = ref_ifca(world, first, 0.3)
    assert len(taken) > 1
    for j, tree in enumerate(models):
        close({k: v[j] for k, v in fed.server.models.items()}, tree)


def test_one_cluster_is_fedavg_with_equal_weights() -> None:
    world = make_world(0, model=Mlp)
    same = run(world, tune(fedavg(lr=0.3), "model", reduce=plain), loop).server.model
    one = run(world, ifca(lr=0.3, clusters=1), loop).server.models
    close({k: v[0] for k, v in one.items()}, {k: v.numpy() for k, v in same.items()}, 1e-12)


def test_clients_with_contrary_labels_answer_with_different_models() -> None:
    """Odd clients call everything by another name; after some rounds each kind has a model of its own."""
    world = make_world(3, clients=8, rounds=25)
    y = [np.arange(len(v)) % 4 for v in world.y]
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(len(v), 3)) + 4 * np.eye(4)[v][:, :3] for v in y]
    world = replace(world, x=x, y=[(v + 2 * (i % 2)) % 4 for i, v in enumerate(y)])
    fed = run(world, ifca(lr=0.3, clusters=2), Batched())
    right = [float((answer(fed, world, i).argmax(1) == world.y[i]).mean()) for i in range(8)]
    assert min(right) > 0.6
    assert not np.allclose(answer(fed, replace(world, x=[x[0]] * 8), 0), answer(fed, replace(world, x=[x[0]] * 8), 1))
