"""FedCP against its reference, and the invariants of its policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, net_of, run
from reference.fedcp import fedcp as ref_fedcp
from reference.fedcp import mmd as ref_mmd
from reference.fedcp import personal_logits
from reference.model import BnMlp, Mlp, Model, Tree
from reference.world import World, make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local.mmd import mmd
from weft.methods.fedcp import fedcp, kernel

NAMES = {"weight": "cpn.0.weight", "bias": "cpn.0.bias", "norm.weight": "cpn.1.weight", "norm.bias": "cpn.1.bias"}


def first_policy(world: World) -> Tree:
    """The server's first policy, under the reference's names."""
    net = net_of(world)
    state = fedcp().server(net, {k: torch.tensor(world.first[k]) for k in net.init(0)})
    return {NAMES[k.removeprefix("policy.")]: v.numpy() for k, v in state.policy.items()}


@pytest.mark.parametrize("lam", [5.0, 0.0])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(lam: float, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    world.turns[0].ids = world.turns[0].ids[:2]  # somebody is new in a later round
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]  # and somebody never comes
    fed = run(world, fedcp(lr=0.1, lam=lam), execute)
    out = ref_fedcp(world, first_policy(world), lr=0.1, lam=lam)
    close(fed.server.model, out.model or {})
    close({NAMES[k.removeprefix("policy.")]: v for k, v in fed.server.policy.items()}, out.extra["theta"])
    own = kept(fed)
    for i, head in out.kept.items():
        close(own[i], {k.replace("own.", "head."): v for k, v in head.items()})
    for i in range(world.population):
        want = personal_logits(world, out, i, world.x[i])
        np.testing.assert_allclose(answer(fed, world, i), want, rtol=0, atol=1e-9)


def test_the_discrepancy() -> None:
    """That of the reference, for the live rows; none between equal sets, and the same either way."""
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(6, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    live = torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64)
    found = mmd(x, y, live, kernel)
    torch.testing.assert_close(found, ref_mmd(x[:4], y[:4]), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, mmd(y, x, live, kernel), rtol=0, atol=1e-12)
    assert found > 0 and abs(float(mmd(x, x, live, kernel))) < 1e-12


def test_the_pull_acts_from_the_second_step_on() -> None:
    """In the first step the features are those of the received extractor."""
    world = make_world(0, rounds=1)
    for steps, same in ((1, True), (2, False)):
        world.turns[0].batches = {i: {"local": b["local"][:steps]} for i, b in world.turns[0].batches.items()}
        free, tied = (run(world, fedcp(lr=0.1, lam=lam), loop).server.model for lam in (0.0, 50.0))
        assert torch.allclose(free["body.weight"], tied["body.weight"], rtol=0, atol=1e-12) == same
        world = make_world(0, rounds=1)
