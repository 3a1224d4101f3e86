"""FedAMD against its reference, with the coins that its clients flip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bridge import close, run
from reference.descent import mean
from reference.fedamd import fedamd as ref_fedamd
from reference.world import World, make_world

from weft.core import SettingError
from weft.core.round import Federation
from weft.core.stream import code, fold, uniform
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedamd import fedamd

RUNS = [
    pytest.param(loop, 0, id="loop"),
    pytest.param(Batched(), 1, id="batched"),
    pytest.param(Batched(2), 2, id="chunked"),
]

LR, P = 0.05, 0.4


def world_of(seed: int, rounds: int = 4) -> World:
    return make_world(seed, rounds=rounds, phases=("local", "whole"))


def anchors(world: World, p: float) -> list[list[int]]:
    """Who flips an anchor in each round of a run over the bridge, whose keys are the clients' numbers + 1000 rounds."""

    def flips(client: int, number: int) -> bool:
        key = fold(torch.tensor(client + 1000 * number), code("anchor"))
        return float(uniform(key, (), torch.float64)) < p

    return [[i for i in turn.ids if flips(i, number)] for number, turn in enumerate(world.turns, 1)]


def gradients(fed: Federation, client: int) -> dict[str, torch.Tensor]:
    return {k: v[client] for k, v in fed.server.gradients.items()}


@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize(("execute", "seed"), RUNS)
def test_equals_the_reference(p: float, execute: Execute, seed: int) -> None:
    world = world_of(seed)
    coins = anchors(world, p)
    assert not p or (any(coins) and any(set(t.ids) - set(c) for t, c in zip(world.turns, coins, strict=True)))
    fed = run(world, fedamd(lr=LR, p=p, eta_g=0.8), execute)
    out = ref_fedamd(world, coins, lr=LR, eta=0.8)
    close(fed.server.model, out.model or {})
    for i, own in out.kept.items():
        close(gradients(fed, i), own)


def test_a_round_of_anchors_leaves_the_model() -> None:
    world = world_of(0)
    for p in (0.999999,):
        fed = run(world, fedamd(lr=LR, p=p), loop)
        assert anchors(world, p) == [t.ids for t in world.turns]
        close(fed.server.model, world.first)


def test_the_first_step_is_gradient_descent_on_the_mean_loss() -> None:
    world = world_of(0, rounds=1)
    everyone = list(range(world.population))
    one = {i: {**b, "local": b["local"][:1]} for i, b in world.turns[0].batches.items()}
    world = replace(world, turns=[replace(world.turns[0], ids=everyone, batches=one)])
    g = mean([world.model.grad(world.first, world.x[i], world.y[i]) for i in everyone])
    model = run(world, fedamd(lr=LR, p=0.0), loop).server.model
    close(model, {k: world.first[k] - LR * g[k] for k in g})


def test_p_of_1_is_refused() -> None:
    """The model would never move."""
    with pytest.raises(SettingError, match="p = 1"):
        fedamd(p=1.0)
