"""Mime and MimeLite against their reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bridge import close, run
from reference.mime import mime as ref_mime
from reference.world import make_world

from weft.core import tune
from weft.core.turn import Execute
from weft.executors import Batched, loop
from weft.methods.fedavg import fedavg
from weft.methods.mime import mime
from weft.server import plain

RUNS = [
    pytest.param(loop, 0, id="loop"),
    pytest.param(Batched(), 1, id="batched"),
    pytest.param(Batched(2), 2, id="chunked"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"beta": 0.6},
    "sgd": {"beta": 0.0},
    "adam": {"base": "adam", "beta": 0.7, "beta2": 0.8, "eps": 0.1},
}


@pytest.mark.parametrize("variant", ["full", "lite"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("execute", "seed"), RUNS)
def test_equals_the_reference(variant: Any, name: str, execute: Execute, seed: int) -> None:
    world, settings = make_world(seed, rounds=4, phases=("local", "whole")), SETTINGS[name]
    fed = run(world, mime(lr=0.1, variant=variant, **settings), execute)
    base = settings.get("base", "momentum")
    theirs = {k: v for k, v in settings.items() if k != "base"} | {"v_first": settings.get("eps", 0.0) ** 2}
    out = ref_mime(world, lr=0.1, base=base, lite=variant == "lite", **theirs)
    close(fed.server.model, out.model or {})
    close(fed.server.m, out.extra["m"])
    if base == "adam":
        close(fed.server.v, out.extra["v"])


def test_lite_without_momentum_is_fedavg_with_equal_weights() -> None:
    world = make_world(0, phases=("local", "whole"))
    lite = run(world, mime(lr=0.1, variant="lite", beta=0.0), loop).server.model
    same = run(world, tune(fedavg(lr=0.1), "model", reduce=plain), loop).server.model
    assert all(torch.allclose(lite[k], same[k], rtol=0, atol=1e-14) for k in same)
