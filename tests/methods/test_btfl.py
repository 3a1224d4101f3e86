"""BTFL against its reference, and the limits of its mixture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.btfl import Client, answers, share, softened
from reference.btfl import btfl as ref_btfl
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core import View
from weft.core.round import Federation
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.btfl import btfl, foreign
from weft.methods.fedavg import fedavg

SETTINGS: dict[str, Any] = {"Q": 3, "sigma": 0.5}


def reference(world: World, q: int = 3, sigma: float = 0.5, lr: float = 0.2) -> tuple[Any, dict[int, Client]]:
    begun = run(replace(world, turns=[]), btfl(Q=q), loop)
    head = kept(begun)[0].head["own"].numpy()
    return ref_btfl(world, head, lr=lr, q=q, sigma=sigma)


def others(world: World, client: int) -> World:
    """The same federation, in which a client answers to other examples."""
    x = list(world.x)
    x[client] = np.concatenate([world.x[client], *(v for i, v in enumerate(world.x) if i != client)])
    return replace(world, x=x)


@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(execute: Execute, seed: int, net: Model) -> None:
    """Client 1 never comes; all answer to their own examples, and then to those of others."""
    world = make_world(seed, rounds=4, phases=("local", "head"), model=net)
    world = replace(world, turns=[replace(t, ids=[i for i in t.ids if i != 1]) for t in world.turns])
    fed = run(world, btfl(lr=0.2, kappa=2.0, stream=5, **SETTINGS), execute)
    common, clients = reference(world)
    close(fed.server.model, common)
    own = kept(fed)
    for i, client in clients.items():
        close(own[i].head, {"own": client.head})
        if client.own is None:
            client.model = common
        else:
            close(own[i].model, client.model)
            assert abs(own[i].seen["own"].numpy() - client.own).max() < 1e-12
        wider = others(world, i)
        said, stream = answers(world, client, wider.x[i], q=3, kappa=2.0, limit=5.0, batch=5)
        shares = torch.as_tensor(np.asarray(said)).log_softmax(-1).numpy()
        np.testing.assert_allclose(_asked(fed, world, wider, i), shares, rtol=0, atol=1e-9)
        assert client.own is None or len(set(np.round(stream.shares, 9))) > 3
    assert any(c.others is not None for c in clients.values())


def _asked(fed: Federation, world: World, wider: World, client: int) -> Any:
    """The answer of a client, which trained in one world, to its examples in another; as logarithms of shares."""
    predict = fed.method.views["personal"].of(int(fed.turns[client]))
    asked = torch.tensor(wider.x[client])
    view = View(lambda net, task: lambda x: predict(net, task)(asked).log_softmax(-1))
    return answer(replace(fed, method=replace(fed.method, views={"personal": view})), world, client)


def test_the_common_model_without_penalty_is_fedavgs() -> None:
    world = make_world(0, rounds=3, phases=("local", "head"))
    ours, theirs = run(world, btfl(lr=0.2, sigma=0.0), loop), run(world, fedavg(lr=0.2), loop)
    close(ours.server.model, {k: v.numpy() for k, v in theirs.server.model.items()}, 0)


def test_alone_in_a_round_the_heads_count_alike() -> None:
    world = make_world(0, rounds=1, phases=("local", "head"))
    world = replace(world, turns=[replace(world.turns[0], ids=[2])])
    fed, (_, clients) = run(world, btfl(lr=0.2, **SETTINGS), loop), reference(world)
    said, stream = answers(world, clients[2], world.x[2], q=3, kappa=4.0, limit=5.0, batch=32)
    assert set(stream.shares) == {0.5}
    np.testing.assert_allclose(answer(fed, world, 2), said, rtol=0, atol=1e-9)


def test_the_share_follows_its_two_sources() -> None:
    """It falls with lambda and rises with alpha / (alpha + beta); at Beta(1, 1) and lambda = 1 it is about a half."""
    one, ratios = torch.tensor(1.0, dtype=torch.float64), torch.tensor([0.2, 0.7, 1.0, 3.0], dtype=torch.float64)
    e = foreign(one, one, ratios)
    assert (e.diff() < 0).all() and abs(float(e[2]) - 0.49) < 1e-3
    rising = [float(foreign(a * one, (6 - a) * one, ratios[1:2])) for a in (1, 2, 3, 5)]
    assert rising == sorted(rising) and rising[0] < rising[-1]
    for a, b in ((1.0, 1.0), (3.0, 1.5)):
        for r in ratios.tolist():
            ours = float(foreign(a * one, b * one, torch.tensor([r], dtype=torch.float64)))
            assert abs(ours - share(a, b, r)) < 1e-12
    assert softened(1.0, 4.0) == 1.0 and softened(2.0, 4.0) == pytest.approx(1 / softened(0.5, 4.0))


def test_streams_are_independent() -> None:
    """An answer to a set of examples does not depend on what was asked before, and the order inside it matters."""
    world = make_world(1, rounds=3, phases=("local", "head"))
    fed = run(world, btfl(lr=0.2, stream=4, kappa=8.0, **SETTINGS), loop)
    client = fed.turns.argmax().item()
    wider = others(world, client)
    first = _asked(fed, world, wider, client)
    again = _asked(fed, world, wider, client)
    turned = replace(wider, x=[v[::-1].copy() for v in wider.x])
    backwards = _asked(fed, world, turned, client)[::-1]
    assert np.array_equal(first, again) and abs(first - backwards).max() > 1e-6
