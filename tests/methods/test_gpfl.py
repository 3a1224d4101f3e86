"""GPFL against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bridge import answer, close, kept, net_of, run
from reference.gpfl import conditions, personal_logits
from reference.gpfl import gpfl as ref_gpfl
from reference.model import BnMlp, Mlp, Model, Tree
from reference.world import World, make_world

from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.gpfl import gpfl

PLACES = {"weight": "0.weight", "bias": "0.bias", "norm.weight": "2.weight", "norm.bias": "2.bias"}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": ({"p_scale": "paper", "magnitude": "example"}, {"p_scale": "paper", "norm": "paper"}),
    "code": ({"p_scale": "code", "magnitude": "batch"}, {"p_scale": "code", "norm": "code"}),
}


def named(valve: Any, table: Any) -> Tree:
    """The shared modules under the reference's names."""
    renamed = {n: n.split(".", 1) for n in valve}
    modules = {f"{part}.{PLACES[rest]}": valve[n].numpy() for n, (part, rest) in renamed.items()}
    return modules | {"table": table["weight"].numpy()}


def first_modules(world: World) -> Tree:
    net = net_of(world)
    state = gpfl().server(net, {k: torch.tensor(world.first[k]) for k in net.init(0)})
    return named(state.valve, state.table)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("execute", "seed", "net"),
    [(loop, 0, Mlp), (Batched(), 1, Mlp), (Batched(2), 2, BnMlp)],
    ids=["loop", "all", "two"],
)
def test_equals_the_reference(name: str, execute: Execute, seed: int, net: Model) -> None:
    world, (ours, theirs) = make_world(seed, model=net), SETTINGS[name]
    fed = run(world, gpfl(lr=0.1, lam=0.5, mu=0.3, **ours), execute)
    out = ref_gpfl(world, first_modules(world), lr=0.1, lam=0.5, mu=0.3, **theirs)
    close(fed.server.model, out.model or {})
    close({k: torch.tensor(v) for k, v in named(fed.server.valve, fed.server.table).items()}, out.extra)
    for i, head in out.kept.items():
        close(kept(fed)[i], head)
        want = personal_logits(world, out, i, world.x[i], theirs["p_scale"])
        np.testing.assert_allclose(answer(fed, world, i), want, rtol=0, atol=1e-9)


def test_conditions_of_equal_shares() -> None:
    """p_i = g / U as the paper writes it, and g as the code has it."""
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = torch.full((4,), 0.25, dtype=torch.float64)
    for scale, parts in (("paper", 4), ("code", 1)):
        g, own = conditions(table, share, scale)
        torch.testing.assert_close(own, g / parts, rtol=0, atol=1e-12)
