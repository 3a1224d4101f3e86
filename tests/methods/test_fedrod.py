"""FedRoD against its reference, and what its private head must not touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedrod import fedrod as ref_fedrod
from reference.fedrod import personal_logits
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.fedavg import fedavg
from weft.methods.fedrod import fedrod


@pytest.mark.parametrize("gamma", [1.0, 0.4])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(gamma: float, execute: Execute, seed: int, net: Model) -> None:
    """Every client of these worlds lacks two classes."""
    world = make_world(seed, rounds=4, model=net)
    fed, out = run(world, fedrod(lr=0.3, gamma=gamma), execute), ref_fedrod(world, lr=0.3, gamma=gamma)
    close(fed.server.model, out.model or {})
    own = kept(fed)
    for i, head in out.kept.items():
        close(own[i], {f"head.{k}": v for k, v in head.items()})
        want = personal_logits(world, out.model or {}, head, world.x[i])
        np.testing.assert_allclose(answer(fed, world, i), want, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        answer(fed, world, 0, "global"), net.logits(out.model or {}, world.x[0]), rtol=0, atol=1e-9
    )


def test_the_private_head_does_not_touch_the_model() -> None:
    world = make_world(0, rounds=3)
    fast, slow = (run(world, fedrod(SGD(0.3), personal=SGD(lr)), loop).server.model for lr in (5.0, 0.0))
    assert all(torch.equal(fast[k], slow[k]) for k in fast)
    free, plain = (run(world, m, loop).server.model for m in (fedrod(lr=0.3, gamma=0.0), fedavg(lr=0.3)))
    assert all(torch.equal(free[k], plain[k]) for k in free)


def test_a_client_of_one_class_trains_its_private_head_alone() -> None:
    world = make_world(1, rounds=1)
    world.turns[0].ids, world.y[2] = [2], np.full_like(world.y[2], 3)
    fed = run(world, fedrod(lr=0.3), loop)
    close(fed.server.model, world.first)
    assert kept(fed)[2]["head.weight"].abs().max() > 0
    np.testing.assert_array_equal(answer(fed, world, 0), answer(fed, world, 0, "global"))  # never trained: P = 0
