"""FedLC against its reference, its pairwise form, and what missing classes do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bridge import close, run
from reference.fedlc import calibrated, calibrated_loss
from reference.fedlc import fedlc as ref_fedlc
from reference.model import BnMlp, Mlp, Model, softmax
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedavg import fedavg
from weft.methods.fedlc import fedlc

RUNS = [
    pytest.param(loop, 0, Mlp, id="loop"),
    pytest.param(Batched(), 1, Mlp, id="batched"),
    pytest.param(Batched(2), 2, BnMlp, id="chunked-norm"),
]

MISSING = np.array([5.0, 2.0, 0.0, 9.0])


@pytest.mark.parametrize("floor", [0.0, 1e-8, 2.0])
@pytest.mark.parametrize(("execute", "seed", "net"), RUNS)
def test_equals_the_reference(floor: float, execute: Execute, seed: int, net: Model) -> None:
    """Every client of these worlds lacks two classes."""
    world = make_world(seed, model=net)
    out = ref_fedlc(world, lr=0.3, tau=0.7, eps=floor or None)
    close(run(world, fedlc(lr=0.3, tau=0.7, floor=floor), execute).server.model, out.model or {})


def test_the_reference_has_the_pairwise_form() -> None:
    z, y = np.random.default_rng(0).normal(size=(6, 4)), np.array([0, 1, 3, 3, 1, 0])
    p = softmax(calibrated(z, MISSING, 0.7, None))
    assert abs(float(-np.log(p[np.arange(6), y]).mean()) - calibrated_loss(z, y, MISSING, 0.7)) < 1e-12
    assert calibrated_loss(z, y, MISSING, 0.7) >= 0
    rare, frequent = (calibrated_loss(np.zeros((1, 2)), np.array([c]), np.array([1e4, 1.0]), 0.7) for c in (1, 0))
    assert rare > frequent


def test_a_missing_class_gets_no_gradient() -> None:
    world = make_world(0, rounds=1)
    world.turns[0].ids = [2]  # its classes are 2 and 3
    model = run(world, fedlc(lr=0.3), loop).server.model
    first = torch.from_numpy(world.first["head.weight"])
    assert torch.equal(model["head.weight"][:2], first[:2]) and not torch.equal(model["head.weight"][2:], first[2:])


def test_equal_counts_are_plain_cross_entropy() -> None:
    world = make_world(1, classes=2)
    for i, n in enumerate(len(y) for y in world.y):
        world.y[i] = np.arange(n) % 2
        world.x[i], world.y[i] = world.x[i][: n - n % 2], world.y[i][: n - n % 2]
    for turn in world.turns:
        turn.batches = {i: {"local": [r[r < len(world.y[i])] for r in b["local"]]} for i, b in turn.batches.items()}
        turn.batches = {i: {"local": [r for r in b["local"] if len(r)]} for i, b in turn.batches.items()}
    ours, plain = (run(world, m, loop).server.model for m in (fedlc(lr=0.3, tau=2.0), fedavg(lr=0.3)))
    close(ours, {k: v.numpy() for k, v in plain.items()})
