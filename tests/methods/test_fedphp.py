"""FedPHP against its reference, the gradient of its discrepancy, and how the inherited model moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.fedavg import fedavg as ref_fedavg
from reference.fedphp import bandwidth, mmd, share
from reference.fedphp import fedphp as ref_fedphp
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.local.mmd import mmd as ours
from weft.methods.fedphp import fedphp, gaussians

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}


@pytest.mark.parametrize("by", ["mmd", "kd"])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(by: Any, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=5, model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]
    fed = run(world, fedphp(SGD(0.1, **HEAVY), lam=0.4, by=by, ramp=2, T=3.0), execute)
    out = ref_fedphp(world, lr=0.1, lam=0.4, loss=by, expected=2, T=3.0, **HEAVY)
    close(fed.server.model, out.model or {})
    own = kept(fed)
    for i, tree in out.kept.items():
        close(own[i], tree)
    for i, tree in ((0, out.kept[0]), (1, out.model or {})):
        np.testing.assert_allclose(answer(fed, world, i), net.logits(tree, world.x[i]), rtol=0, atol=1e-9)


def test_the_slope_of_the_discrepancy() -> None:
    """By autograd with the widths held fixed; no discrepancy between equal sets, and none below zero."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    student, teacher, live = torch.tensor(a, requires_grad=True), torch.tensor(b), torch.ones(4, dtype=torch.float64)
    value = ours(student, teacher, live, gaussians(student, teacher, live))
    want, slope = mmd(a, b)
    assert abs(value.item() - want) < 1e-12 and want > 0 and abs(mmd(a, a)[0]) < 1e-12
    (g,) = torch.autograd.grad(value, student)
    np.testing.assert_allclose(g.numpy(), slope, rtol=0, atol=1e-12)
    assert abs(bandwidth(a[:1], b[:1]) - ((a[0] - b[0]) ** 2).sum()) < 1e-7


def test_the_inherited_model_follows_the_client_s_own_turns() -> None:
    """The first turn makes it the trained model; its momentum then grows by turns of the client, not by rounds."""
    world = make_world(0, rounds=4)
    for turn, ids in zip(world.turns, ([0], [1], [2], [0]), strict=True):
        turn.ids = ids
    fed = run(world, fedphp(SGD(0.1), lam=0.0, ramp=1), loop)
    plain = ref_fedavg(world, lr=0.1).model or {}
    close(fed.server.model, plain)
    world.turns = world.turns[:3]
    before = run(world, fedphp(SGD(0.1), lam=0.0, ramp=1), loop)
    model = {k: v.numpy() for k, v in before.server.model.items()}
    close(kept(before)[2], model)  # the last to train, alone: the common model is its own
    old = kept(before)[0]
    close(kept(fed)[0], {k: 0.9 * old[k].numpy() + 0.1 * plain[k] for k in plain})
    assert [share(0.9, t, 3) for t in range(5)] == pytest.approx([0.0, 0.3, 0.6, 0.9, 0.9])
