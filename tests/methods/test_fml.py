"""FML against its reference, and who moves whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fml import divergence
from reference.fml import fml as ref_fml
from reference.local import local as ref_local
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core import mean, tune
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedavg import fedavg
from weft.methods.fml import fml
from weft.server import plain

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.2, 0.9)])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "batched", "chunked-norm"],
)
def test_equals_the_reference(alpha: float, beta: float, execute: Execute, seed: int, net: Model) -> None:
    """With batch norm the meme is weighted by examples, as running statistics are."""
    world = make_world(seed, rounds=4, model=net)
    method, weighting = fml(lr=0.3, alpha=alpha, beta=beta, **HEAVY), "uniform"
    if net is BnMlp:
        method, weighting = tune(method, "model", reduce=mean), "examples"
    fed, out = (
        run(world, method, execute),
        ref_fml(world, lr=0.3, alpha=alpha, beta=beta, weighting=weighting, **HEAVY),
    )
    close(fed.server.model, out.model or {})
    own = kept(fed)
    for i, model in out.kept.items():
        close(own[i], model)


def test_who_answers_with_what() -> None:
    world = make_world(0, rounds=2)
    world = replace(world, turns=[replace(t, ids=[i for i in t.ids if i != 1]) for t in world.turns])
    fed, out = run(world, fml(lr=0.3, **HEAVY), loop), ref_fml(world, lr=0.3, **HEAVY)
    for i in range(world.population):
        own = out.kept[i] if any(i in t.ids for t in world.turns) else out.model or {}
        np.testing.assert_allclose(answer(fed, world, i), Mlp.logits(own, world.x[i]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("net", [Mlp, BnMlp])
def test_labels_alone_are_local_training_and_fedavg(net: Model) -> None:
    world = make_world(0, model=net)
    fed = run(world, fml(lr=0.3, alpha=1.0, beta=1.0, **HEAVY), loop)
    theirs = run(world, tune(fedavg(lr=0.3, **HEAVY), "model", reduce=plain), loop).server.model
    assert all(torch.equal(fed.server.model[k], theirs[k]) for k in theirs)
    alone = ref_local(world, lr=0.3, match_participation=True, **HEAVY).kept
    for i, own in kept(fed).items():
        close(own, alone[i])


def test_what_teaches_is_not_taught_by_it() -> None:
    """The meme's share beta does not change the private model in a turn of one step."""
    world = make_world(0, rounds=2)
    for turn in world.turns:
        turn.batches = {i: {"local": b["local"][:1]} for i, b in turn.batches.items()}
    world = replace(world, turns=[replace(world.turns[0], ids=list(range(5))), *world.turns[1:]])
    one = kept(run(world, fml(lr=0.3, beta=0.1, **HEAVY), loop))
    first = replace(world, turns=world.turns[:1])
    two, three = (kept(run(first, fml(lr=0.3, beta=b, **HEAVY), loop)) for b in (0.1, 0.9))
    assert all(torch.equal(two[i][k], three[i][k]) for i in two for k in two[i])
    assert any(not torch.equal(one[i][k], two[i][k]) for i in one for k in one[i])
    z = np.random.default_rng(0).normal(size=(4, 3))
    assert divergence(z, z) == 0 and divergence(z, 2 * z) > 0
