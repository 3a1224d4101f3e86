"""DBE on FedAvg against its reference, and what its vector must not touch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bridge import answer, close, examples_of, kept, run, turn_of
from reference.feddbe import feddbe as ref_feddbe
from reference.feddbe import personal_logits
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world
from torch.utils._pytree import tree_map

from weft.core import Data, Round, Task
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedavg import fedavg
from weft.methods.feddbe import feddbe


def opened(world: World) -> World:
    """The world as the reference has it: before its rounds a turn of everybody, with the batches of the first."""
    return replace(world, turns=[replace(world.turns[0], ids=list(range(world.population))), *world.turns])


@pytest.mark.parametrize(("kappa", "mu"), [(50.0, 1.0), (3.0, 0.3)])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(kappa: float, mu: float, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]  # takes part in the opening alone
    fed = run(world, feddbe(lr=0.05, kappa=kappa, mu=mu), execute)
    out = ref_feddbe(opened(world), lr=0.05, kappa=kappa, mu=mu)
    assert out.model is not None
    close(fed.server.mean, {"mean": out.extra["m"]})
    close(fed.server.model, out.model)
    for i, p in out.kept.items():
        close({"p": kept(fed)[i].beside}, {"p": p})
        want = personal_logits(world, out.model, p, world.x[i])
        np.testing.assert_allclose(answer(fed, world, i), want, rtol=0, atol=1e-9)
    np.testing.assert_allclose(answer(fed, world, 0, "global"), net.logits(out.model, world.x[0]), rtol=0, atol=1e-9)


def test_without_pull_and_vector_it_is_fedavg_from_the_first_model() -> None:
    """The opening's training is thrown away."""
    world = make_world(0, model=BnMlp)
    same = run(world, fedavg(lr=0.1), loop).server.model
    close(
        run(world, feddbe(lr=0.1, kappa=0.0, bias_rate=0.0), loop).server.model, {k: v.numpy() for k, v in same.items()}
    )


def test_the_common_mean_stays() -> None:
    world = make_world(0, rounds=4)
    means = [run(replace(world, turns=world.turns[:n]), feddbe(lr=0.1), loop).server.mean["mean"] for n in (1, 4)]
    assert (means[0] == means[1]).all()


def test_the_vector_is_in_no_message() -> None:
    """A message is as large as one of FedAvg."""
    world = make_world(0, rounds=2)
    fed, ids = run(world, feddbe(lr=0.1), loop), torch.tensor([0])
    turn = tree_map(lambda x: x[0], turn_of(world, world.turns[0].batches, ids, fed.method.phases, fed.turns[ids]))
    down = fed.method.send(fed.server, Round(3, ids, world.population, fed.net))
    reply = fed.method.work(fed.net, Task(down, kept(fed)[0], Data(examples_of(world), turn)))
    assert set(reply.up.model) == set(world.first) and set(reply.up._fields) == {"model"}
    assert set(down.model) == {*world.first, "dbe.mean"}
