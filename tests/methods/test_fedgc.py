"""FedGC against its reference, with classes of several clients and with classes of one client each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, run
from reference.fedgc import correction as ref_correction
from reference.fedgc import fedgc as ref_fedgc
from reference.fedgc import own_logits
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedgc import correction, fedgc


def world_of(seed: int, net: Model, disjoint: bool) -> World:
    """Two classes per client: shared with the neighbours, or its own."""
    if not disjoint:
        return make_world(seed, rounds=4, model=net)
    world = make_world(seed, rounds=4, classes=10, model=net)
    return replace(world, y=[2 * i + (y - i) % 10 for i, y in enumerate(world.y)])


@pytest.mark.parametrize("same", ["averaged", "pushed"])
@pytest.mark.parametrize("lam", [0.0, 3.0])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(same: Any, lam: float, execute: Execute, seed: int, net: Model) -> None:
    """The formula of the paper ("pushed") is for classes of one client each."""
    world = world_of(seed, net, same == "pushed")
    world.turns[0].ids = world.turns[0].ids[:2]  # somebody is new in a later round
    fed, out = run(world, fedgc(lr=0.2, lam=lam), execute), ref_fedgc(world, lr=0.2, lam=lam, same=same)
    close(fed.server.model, out.model or {})
    for i in out.extra["sent"]:
        own = out.extra["owned"][i]
        ours, theirs = fed.server.own["weight"][i][own].numpy(), out.extra["tables"][i][own]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
        got, want = answer(fed, world, i)[:, own], own_logits(world, out, i, world.x[i])[:, own]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)
        assert (answer(fed, world, i).argmax(1)[:, None] == own).any(1).all()


def test_the_correction_is_the_gradient_of_its_regulariser() -> None:
    """By automatic differentiation of the printed formula, with large norms and disjoint classes."""
    rng = torch.Generator().manual_seed(0)
    w = (4 * torch.randn(2, 4, 3, generator=rng, dtype=torch.float64)).requires_grad_()
    has = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)
    reg = torch.zeros((), dtype=torch.float64)
    for k in (0, 1):
        for c in has[k].nonzero()[:, 0]:
            e = w[k, c].detach()
            others = torch.stack([w[1 - k, j] @ e for j in has[1 - k].nonzero()[:, 0]])
            reg = reg - (e @ e) + torch.logsumexp(torch.cat([(e @ e)[None], others]), 0)
    (want,) = torch.autograd.grad(reg, w)
    got = correction(w.detach(), has)
    torch.testing.assert_close(got * has[..., None], want, rtol=0, atol=1e-12)
    tables = {k: w[k].detach().numpy() for k in (0, 1)}
    theirs = ref_correction(tables, {0: np.array([0, 1]), 1: np.array([2, 3])}, "pushed")
    np.testing.assert_allclose(np.stack([theirs[0], theirs[1]]), want.numpy(), rtol=0, atol=1e-12)


def test_the_correction_bears_long_rows() -> None:
    """Two equal rows share the softmax, however long they are."""
    w = 100 * torch.ones(2, 2, 3, dtype=torch.float64)
    pushed = correction(w, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(pushed[[0, 1], [0, 1]], w[0] / 2, rtol=1e-9, atol=0)


def test_a_message_has_the_rows_of_its_client_alone() -> None:
    """What one client receives and what it sends: nothing in rows of classes that it has not."""
    world = world_of(0, Mlp, True)
    fed = run(world, fedgc(lr=0.2), loop)
    alone = run(replace(world, turns=[replace(t, ids=[0]) for t in world.turns]), fedgc(lr=0.2), loop)
    assert set(fed.method.up) == {"model", "own"}
    assert not alone.server.own["weight"][0][2:].any() and alone.server.own["classes"][0].tolist() == [1, 1, *[0] * 8]
