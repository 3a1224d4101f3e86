"""FedCross against its reference, with the visits that the server draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bridge import answer, close, run
from reference.fedcross import fedcross as ref_fedcross
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core import tune
from weft.core.stream import stream
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedavg import fedavg
from weft.methods.fedcross import fedcross
from weft.server import plain

RUNS = [
    pytest.param(loop, 0, Mlp, id="loop"),
    pytest.param(Batched(), 1, Mlp, id="batched"),
    pytest.param(Batched(2), 2, BnMlp, id="chunked-norm"),
]

K = 4


def world_of(seed: int, model: Model = Mlp, rounds: int = 4) -> World:
    """As many clients in every round, not always the same."""
    world = make_world(seed, clients=6, rounds=rounds, model=model)
    ids = ([0, 2, 3, 5], [1, 2, 4, 5], [0, 1, 3, 4], [2, 3, 4, 5])
    return replace(world, turns=[replace(t, ids=i) for t, i in zip(world.turns, ids, strict=True)])


def visits(world: World) -> list[list[int]]:
    """Model i visits the client at whose place the server drew i."""
    drawn = []
    for number, turn in enumerate(world.turns, 1):
        place = stream(0, "fedcross", number).permutation(K).tolist()
        drawn.append([turn.ids[place.index(i)] for i in range(K)])
    return drawn


@pytest.mark.parametrize("settings", [{}, {"warmup": 2}, {"alpha": 0.6}], ids=str)
@pytest.mark.parametrize("choose", ["lowest", "highest", "in-order"])
@pytest.mark.parametrize(("execute", "seed", "net"), RUNS)
def test_equals_the_reference(settings: Any, choose: Any, execute: Execute, seed: int, net: Model) -> None:
    world = world_of(seed, net)
    settings = {"alpha": 0.8, **settings}
    fed = run(world, fedcross(lr=0.1, choose=choose, **settings), execute)
    theirs = {"alpha": settings["alpha"], "warm_up": settings.get("warmup", 0)}
    out = ref_fedcross(world, visits(world), lr=0.1, selection=choose.replace("-", " "), **theirs)
    for i, tree in enumerate(out.extra["models"]):
        close({k: v[i] for k, v in fed.server.models.items()}, tree)
    close(fed.server.model, out.model or {})
    got, want = answer(fed, world, 1, "global"), net.logits(out.model or {}, world.x[1])
    assert abs(got - want).max() < 1e-9


def test_warming_up_is_fedavg_with_equal_weights() -> None:
    world = world_of(0)
    model = run(world, fedcross(lr=0.1, warmup=4), loop).server.model
    close(
        model,
        {k: v.numpy() for k, v in run(world, tune(fedavg(lr=0.1), "model", reduce=plain), loop).server.model.items()},
    )


def test_the_models_draw_together_while_nobody_learns() -> None:
    world = world_of(1)
    spread: list[float] = []
    for rounds in (1, 2, 3, 4):
        late = replace(
            world,
            turns=[
                *world.turns[:1],
                *(replace(t, batches={i: {"local": []} for i in t.batches}) for t in world.turns[1:rounds]),
            ],
        )
        models = run(late, fedcross(lr=0.5, alpha=0.7, choose="in-order"), loop).server.models
        spread.append(sum(float(((v - v.mean(0)) ** 2).sum()) for v in models.values()))
    assert spread[0] > spread[1] > spread[2] > spread[3] > 0


def test_every_pair_meets() -> None:
    from weft.methods.fedcross import partners

    met = {(i, int(j)) for turn in range(K - 1) for i, j in enumerate(partners({"w": torch.eye(K)}, "in-order", turn))}
    assert met == {(i, j) for i in range(K) for j in range(K) if i != j}
