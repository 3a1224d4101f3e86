"""FedKD against its reference, and the two ways in which public code cuts too much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import close, kept, net_of, run
from reference.fedkd import fedkd as ref_fedkd
from reference.fedkd import gradients, threshold, truncated
from reference.model import BnMlp, Mlp, Model
from reference.world import World, make_world

from weft.core import Method, mean, tune
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.local import SGD
from weft.methods.fedkd import fedkd

HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}
ROUNDS = 4


def method_of(**options: Any) -> Method:
    return fedkd(SGD(0.05, **HEAVY), rounds=ROUNDS, **options)


def projection(world: World) -> Any:
    """The first W_h, which the paper leaves open."""
    net = net_of(world)
    return fedkd().client(net, net.init(0)).projection["W_h"].numpy()


@pytest.mark.parametrize(("start", "end"), [(0.95, 0.98), (0.4, 0.9), (1.0, 1.0)])
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "batched", "chunked-norm"],
)
def test_equals_the_reference(start: float, end: float, execute: Execute, seed: int, net: Model) -> None:
    """With batch norm the mentee is weighted by examples, as running statistics are. Some matrices are cut."""
    world = make_world(seed, rounds=ROUNDS, model=net, dim=12, hidden=9, classes=8)
    energies = [threshold(start, end, n, ROUNDS) for n in range(1, ROUNDS + 1)]
    method, weighting = method_of(start=start, end=end), "uniform"
    if net is BnMlp:
        method, weighting = tune(method, "model", reduce=mean), "examples"
    fed = run(world, method, execute)
    out = ref_fedkd(world, lr=0.05, proj=projection(world), energies=energies, weighting=weighting, **HEAVY)
    close(fed.server.model, out.model or {})
    own = kept(fed)
    for i, model in out.kept.items():
        close(own[i].model, model)
        close(own[i].projection, {"W_h": out.extra["proj"][i]})


def test_cutting_does_something_and_rising_thresholds_do_less() -> None:
    world = make_world(0, rounds=ROUNDS, dim=12, hidden=9, classes=8)
    whole, low, lower = (
        run(world, method_of(start=s, end=s), loop).server.model["body.weight"] for s in (1.0, 0.9, 0.4)
    )
    assert 0 < (low - whole).norm() < (lower - whole).norm()
    assert threshold(0.95, 0.98, 50, 50) == 0.98 and threshold(0.95, 0.98, 1, 50) > 0.95


def test_a_flat_spectrum_is_not_cut_to_nothing() -> None:
    """Public code leaves rank 0 where no fewer than all values reach the threshold."""
    for x in (np.eye(12), np.outer(np.arange(1.0, 13), np.ones(20))):
        kept_part = truncated({"w": x}, 0.95)["w"]
        assert ((kept_part - x) ** 2).sum() <= 0.05 * (x**2).sum() + 1e-12


def test_the_reference_has_the_gradients_of_its_losses() -> None:
    """By differences, with what is constant held constant."""
    rng, world = np.random.default_rng(0), make_world(3)
    mentor = {k: v + rng.normal(size=v.shape) for k, v in world.first.items()}
    x, y, w = world.x[0], world.y[0], rng.normal(size=(4, 4))
    gp, _, gw, s = gradients(world, mentor, world.first, w, x, y)
    zs = torch.tensor(Mlp.logits(world.first, x)).log_softmax(1)
    hs = torch.tensor(Mlp.features(world.first, x))
    p = {k: torch.tensor(v, requires_grad=True) for k, v in mentor.items()}
    wh = torch.tensor(w, requires_grad=True)
    ht = torch.tanh(torch.tensor(x) @ p["body.weight"].T + p["body.bias"])
    zt = ht @ p["head.weight"].T + p["head.bias"]
    hidden = ((ht - hs @ wh.T) ** 2).mean() / s
    kl = (zs.exp() * (zs - zt.log_softmax(1))).sum(1).mean() / s
    (torch.nn.functional.cross_entropy(zt, torch.tensor(y)) + kl + hidden).backward()  # type: ignore[no-untyped-call]
    close({k: v.grad for k, v in p.items() if v.grad is not None}, gp)
    assert wh.grad is not None
    np.testing.assert_allclose(wh.grad.numpy(), gw, atol=1e-12)
