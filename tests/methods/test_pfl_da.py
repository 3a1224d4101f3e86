"""PFL-DA against its reference, and what each of its phases leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedper import joined
from reference.lg_fedavg import lg_fedavg as ref_lg_fedavg
from reference.model import BnMlp, Mlp, Model
from reference.pfl_da import pfl_da as ref_pfl_da
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.pfl_da import pfl_da

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}


@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, phases=("local", "head"), model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]
    fed, out = run(world, pfl_da(lr=0.1, lam=0.6, **HEAVY), execute), ref_pfl_da(world, lr=0.1, lam=0.6, **HEAVY)
    close(fed.server.model, out.model or {})
    own = kept(fed)
    for i, (body, head) in out.kept.items():
        close(own[i], {**body, **head})
    for i, head in ((0, out.kept[0][1]), (1, out.model or {})):
        model = joined(world, out.kept[i][0], head)
        np.testing.assert_allclose(answer(fed, world, i), net.logits(model, world.x[i]), rtol=0, atol=1e-9)


def test_the_common_head_is_that_of_lg_fedavg() -> None:
    world = make_world(0, rounds=3, phases=("local", "head"))
    alone = ref_lg_fedavg(world, lr=0.1)
    for lam in (0.0, 3.0):
        fed = run(world, pfl_da(lr=0.1, lam=lam), loop)
        close(fed.server.model, alone.model or {})
        for i, body in alone.kept.items():
            close({k: kept(fed)[i][k] for k in body}, body)


def test_the_penalty_holds_the_private_head() -> None:
    """The larger its weight, the nearer the head stays to the one received."""
    world = make_world(0, rounds=1, phases=("local", "head"))
    first = torch.tensor(world.first["head.weight"])
    i = world.turns[0].ids[0]

    def away(lam: float) -> float:
        own = kept(run(world, pfl_da(lr=0.05, lam=lam), loop))[i]
        return float((own["head.weight"] - first).norm())

    assert away(0.0) > away(1.0) > 2 * away(9.0) > 0
