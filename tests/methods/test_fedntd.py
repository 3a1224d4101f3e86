"""FedNTD against its reference, and what its term does not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bridge import close, run
from reference.fedntd import fedntd as ref_fedntd
from reference.fedntd import term
from reference.model import BnMlp, Mlp, Model, softmax
from reference.world import make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.fedavg import fedavg
from weft.methods.fedntd import fedntd

RUNS = [
    pytest.param(loop, 0, Mlp, id="loop"),
    pytest.param(Batched(), 1, Mlp, id="batched"),
    pytest.param(Batched(2), 2, BnMlp, id="chunked-norm"),
]

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}


@pytest.mark.parametrize(("beta", "T"), [(1.0, 1.0), (0.7, 3.0)])
@pytest.mark.parametrize(("execute", "seed", "net"), RUNS)
def test_equals_the_reference(beta: float, T: float, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, model=net)
    out = ref_fedntd(world, lr=0.05, beta=beta, T=T, **HEAVY)
    close(run(world, fedntd(SGD(0.05, **HEAVY), beta=beta, T=T), execute).server.model, out.model or {})


def test_the_reference_does_not_see_the_true_class() -> None:
    rng = np.random.default_rng(0)
    z, teacher, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    value, dz = term(z, teacher, y, 2.0)
    assert value > 0 and not dz[np.arange(6), y].any()
    raised = teacher + 3.0
    raised[np.arange(6), y] += 5.0
    assert abs(term(z, raised, y, 2.0)[0] - value) < 1e-12
    s, t = (softmax(np.where(np.eye(4)[y] > 0, -1e9, v) / 2.0) for v in (z, teacher))
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.where(t > 0, t * (np.log(t) - np.log(s)), 0.0).sum(axis=1)
    assert abs(4.0 * rows.mean() - value) < 1e-12


def test_with_two_classes_it_is_fedavg() -> None:
    world = make_world(0, classes=2)
    ours, plain = (run(world, m, loop).server.model for m in (fedntd(SGD(0.3), beta=5.0), fedavg(SGD(0.3))))
    close(ours, {k: v.numpy() for k, v in plain.items()})
