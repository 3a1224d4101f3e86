"""FedAMP and HeurFedAMP against their references, and what makes a cloud model a step on the attention term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, run
from reference.descent import mean
from reference.fedamp import attention
from reference.fedamp import fedamp as ref_fedamp
from reference.fedamp import heurfedamp as ref_heurfedamp
from reference.local import local as ref_local
from reference.model import BnMlp, Mlp, Model, Tree
from reference.world import Outcome, World, make_world

from weft.core import Method, Round
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedamp import Clouds, fedamp, heurfedamp


class Case(NamedTuple):
    ours: Callable[[], Method]
    theirs: Callable[[World], Outcome]


HEAVY: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.01}
PAPER: dict[str, Any] = {"lam": 0.2, "alpha": 0.3, "sigma": 2.0, "unit": "one"}
SCALED: dict[str, Any] = {"lam": 0.2, "alpha": 0.6, "sigma": 0.7, "unit": "median"}
CASES = {
    "fedamp": Case(lambda: fedamp(lr=0.1, **PAPER, **HEAVY), lambda w: ref_fedamp(w, lr=0.1, **PAPER, **HEAVY)),
    "fedamp median": Case(lambda: fedamp(lr=0.1, **SCALED), lambda w: ref_fedamp(w, lr=0.1, **SCALED)),
    "heurfedamp": Case(
        lambda: heurfedamp(lr=0.1, pull=0.6, own=0.3, sigma=5.0),
        lambda w: ref_heurfedamp(w, lr=0.1, own=0.3, sigma=5.0, lam=0.6),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(name: str, execute: Execute, seed: int, net: Model) -> None:
    world = make_world(seed, rounds=4, model=net)
    for turn in world.turns:
        turn.ids = [i for i in turn.ids if i != 1]
    case = CASES[name]
    method = case.ours()
    fed, out = run(world, method, execute), case.theirs(world)
    own = kept(fed)
    for i, w in out.kept.items():
        close(own[i], w)
    sent = method.send(fed.server, Round(5, torch.arange(world.population), world.population, fed.net)).model
    for i, u in enumerate(out.extra["cloud"]):
        close({k: v[i] for k, v in sent.items()}, u)
    met = {i for turn in world.turns for i in turn.ids}
    others = mean([{k: out.kept[i][k] for k in net.trainable(world.first)} for i in met])
    for i, model in ((0, out.kept[0]), (1, {**world.first, **others})):
        np.testing.assert_allclose(answer(fed, world, i), net.logits(model, world.x[i]), rtol=0, atol=1e-9)


def clouds(rows: torch.Tensor, **options: Any) -> torch.Tensor:
    """u of all clients whose models are these rows."""
    n = len(rows)
    state = Clouds({"x": rows}, {"seen": torch.ones(n)})
    made = heurfedamp if "own" in options else fedamp
    return made(**options).send(state, Round(2, torch.arange(n), n, None)).model["x"]  # type: ignore[arg-type]


def test_a_cloud_model_is_a_step_on_the_attention_term() -> None:
    """Each pair once; the factor 2 of the squared norm goes into alpha."""
    w = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma, alpha = 2.5, 0.3
    term = sum(1 - torch.exp(-((w[i] - w[j]) ** 2).sum() / sigma) for i in range(5) for j in range(i))
    (g,) = torch.autograd.grad(term, w)  # type: ignore[arg-type]
    u = clouds(w.detach(), alpha=alpha, sigma=sigma, unit="one")
    torch.testing.assert_close(u, w.detach() - alpha / 2 * g, rtol=0, atol=1e-12)


def test_limits_of_attention() -> None:
    w = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for options in ({"alpha": 0.1, "sigma": 1e-3, "unit": "one"}, {"alpha": 1e-12, "sigma": 1.0}):
        torch.testing.assert_close(clouds(w, **options), w, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        clouds(w, alpha=2.5e9, sigma=1e10, unit="one"), w.mean(0).expand_as(w), rtol=0, atol=1e-8
    )
    # far too long a step: the others share all of it, and it stays inside
    greedy = clouds(w, alpha=100.0, sigma=50.0, unit="one")
    assert (greedy >= w.min(0).values).all() and (greedy <= w.max(0).values).all()
    same = w[:1].expand(4, 3)
    for options in ({"alpha": 0.1, "sigma": 1.0, "unit": "one"}, {"alpha": 0.1}, {"own": 0.3}):
        torch.testing.assert_close(clouds(same, **options), same, rtol=0, atol=1e-12)


def test_far_groups_do_not_mix() -> None:
    rows = np.array([[0.0, 0.1], [0.1, 0.0], [9.0, 9.1], [9.1, 9.0]])
    xi = attention(rows, [0, 1, 2, 3], 0.5, 1.0)
    assert xi[0, 2:].max() < 1e-6 * xi[0, 1] and np.allclose(xi.sum(1), 1) and np.allclose(xi, xi.T)


@pytest.mark.parametrize("method", [fedamp(lr=0.1, lam=0.0), heurfedamp(lr=0.1, pull=0.0)], ids=["fedamp", "heur"])
def test_without_a_pull_every_client_is_alone(method: Method) -> None:
    world = make_world(0, rounds=3)
    own, alone = kept(run(world, method, loop)), ref_local(world, lr=0.1, match_participation=True).kept
    for i in alone:
        trees: tuple[Any, Tree] = own[i], alone[i]
        close(*trees)
