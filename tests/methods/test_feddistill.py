"""FD against its reference, and what its rows are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.feddistill import feddistill as ref_feddistill
from reference.feddistill import teacher, term
from reference.local import local as ref_local
from reference.model import BnMlp, Mlp, Model
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.feddistill import feddistill

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}


@pytest.mark.parametrize(("outputs", "leave_out"), [("softmax", True), ("softmax", False), ("logits", False)])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "batched", "chunked-norm"],
)
def test_equals_the_reference(outputs: Any, leave_out: bool, execute: Execute, seed: int, net: Model) -> None:
    """Models, and what the last participants sent."""
    world = make_world(seed, rounds=4, model=net)
    fed = run(world, feddistill(lr=0.1, lam=0.7, outputs=outputs, leave_out=leave_out, **HEAVY), execute)
    out = ref_feddistill(world, lr=0.1, gamma=0.7, target=outputs, leave_one_out=leave_out, **HEAVY)
    own = kept(fed)
    for i, model in out.kept.items():
        close(own[i], model)
        np.testing.assert_allclose(answer(fed, world, i), net.logits(model, world.x[i]), rtol=0, atol=1e-9)
    assert fed.server.ids.tolist() == list(out.extra["tables"])
    for mean, owned, (rows, count) in zip(*fed.server.rows.values(), out.extra["tables"].values(), strict=True):
        close({"rows": mean, "owned": owned}, {"rows": rows, "owned": count > 0})


def test_the_first_round_distils_nothing() -> None:
    world = make_world(0, rounds=1)
    out = ref_local(world, lr=0.1, match_participation=True)
    for i, own in kept(run(world, feddistill(lr=0.1, lam=5.0), loop)).items():
        close(own, out.kept[i])


def test_rows_are_probabilities_of_own_classes() -> None:
    rows = run(make_world(0), feddistill(lr=0.1), loop).server.rows
    total = rows["mean"].sum(2)
    torch.testing.assert_close(total, rows["owned"], rtol=0, atol=1e-12)
    assert (rows["mean"] >= 0).all() and 0 < rows["owned"].sum() < rows["owned"].numel()


def test_the_reference_by_hand() -> None:
    rng = np.random.default_rng(0)
    z, y, t = rng.normal(size=(5, 3)), np.array([0, 1, 2, 2, 1]), rng.dirichlet(np.ones(3), 3)
    known = np.array([1.0, 1.0, 0.0])
    value, dz = term(z, y, t, known)
    e = 1e-6
    for place in ((0, 1), (4, 2), (2, 0)):
        step = np.zeros_like(z)
        step[place] = e
        slope = (term(z + step, y, t, known)[0] - term(z - step, y, t, known)[0]) / (2 * e)
        assert abs(slope - dz[place]) < 1e-8
    assert value > 0 and not dz[y == 2].any()
    alike = {j: (t, np.ones(3)) for j in range(4)}
    np.testing.assert_allclose(teacher(alike, 2, 3)[0], t, atol=1e-15)
    assert not teacher({1: (t, np.ones(3))}, 1, 3)[1].any()
